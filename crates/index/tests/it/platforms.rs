//! Images without the requested platform.

use soci_index::convert;

use crate::convert::{all, listed, refused, two_platforms};
use crate::image::Images;

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_is_not_there_is_answered_with_those_that_are() {
    let images = Images::new();
    let (target, _) = two_platforms(&images).await;
    let wanted =
        "not found; the image has linux/amd64, linux/arm64/v8 (select with --platform or -p)";
    for target in [
        target.clone(),
        convert(&images.means(), &target, &all())
            .await
            .unwrap()
            .image,
    ] {
        let error = refused(&images, &target, &listed(&["linux/s390x"])).await;
        let message = error.to_string();
        assert_eq!(message, format!("image manifest for linux/s390x: {wanted}"));
    }
}
