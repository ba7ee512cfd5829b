//! Redirects of a blob to a storage service.

use super::*;

fn redirecting(uses: u32, expired: Expired) -> Case {
    let redirect = Some(Redirect { uses, expired });
    case(
        Setup {
            redirect,
            ..Setup::default()
        },
        quick(),
    )
}

#[tokio::test]
async fn a_redirect_is_kept_until_it_runs_out_then_renewed() {
    for expired in [Expired::Forbidden, Expired::ExpiredToken] {
        let case = redirecting(3, expired);
        for i in 0..7 {
            case.assert_right(i * 1000..i * 1000 + 500).await;
        }
        let seen = case.registry.seen();
        let own = seen
            .iter()
            .filter(|seen| seen.path.starts_with("/v2/"))
            .count();
        let signed = seen
            .iter()
            .filter(|seen| seen.path.starts_with("/signed/"))
            .count();
        // Seven reads, of which two first found that the URL was no longer valid.
        assert_eq!((own, signed), (3, 9), "{expired:?}");
    }
}

#[tokio::test]
async fn a_redirect_that_runs_out_inside_a_range_is_renewed_inside_it() {
    let case = redirecting(1, Expired::Forbidden);
    case.registry
        .fault(Fault::once(On::Signed, Wrong::Cut(100_000)));
    case.assert_right(0..SIZE).await;
    let seen = case.registry.seen();
    let starts: Vec<u64> = seen
        .iter()
        .filter_map(|s| s.range.as_ref())
        .map(|r| r.start)
        .collect();
    assert_eq!(starts, [0, 0, 100_000, 100_000, 100_000]);
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let case = plain();
    let location = format!(
        "{}?again=1",
        "/v2/app/blobs/".to_owned() + &case.digest.to_string()
    );
    case.always(Wrong::Status {
        code: 307,
        headers: vec![("location", location)],
        body: String::new(),
    });
    let error = case.get(0..10).await.expect_err("no end");
    assert!(
        matches!(error, FetchError::Redirects { limit: 10, .. }),
        "{error:?}"
    );
    assert_eq!(case.registry.requests(), 11);
}

#[tokio::test]
async fn a_redirect_to_what_is_no_web_address_is_refused() {
    for target in ["file:///etc/passwd", "mailto:x@y", "http://", "//"] {
        let case = plain();
        let headers = vec![("location", target.to_owned())];
        case.fault(Wrong::Status {
            code: 302,
            headers,
            body: String::new(),
        });
        let error = case.get(0..10).await.expect_err("not followed");
        assert!(
            matches!(error, FetchError::BadRedirect { .. }),
            "{target}: {error:?}"
        );
    }
}

#[tokio::test]
async fn signed_addresses_are_never_printed() {
    let case = redirecting(1, Expired::Forbidden);
    case.assert_right(0..10).await;
    case.registry
        .fault(Fault::always(On::Signed, Wrong::status(500)));
    let error = case.get(0..10).await.expect_err("never works");
    let said = everything_said(&error);
    assert!(said.contains("X-Signature=redacted"), "{said}");
    assert!(!said.contains("do-not-print"), "{said}");
    assert!(!format!("{:?} {:?}", case.blob, case.client).contains("do-not-print"));
    case.registry.clear_faults();
    case.registry
        .fault(Fault::always(On::Signed, Wrong::Hangup));
    let said = everything_said(&case.get(0..10).await.expect_err("never works"));
    assert!(
        said.contains("no answer from") && !said.contains("do-not-print"),
        "{said}"
    );
}
