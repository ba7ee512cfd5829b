use super::*;

#[test]
fn keys_of_requests_reach_the_registry_client() {
    let mut config = Config::default();
    config.http.dial_timeout_msec = 11;
    config.http.response_header_timeout_msec = 12;
    config.http.request_timeout_msec = 1_300;
    config.http.max_retries = -1;
    config.http.min_wait_msec = 14;
    config.http.max_wait_msec = 15;
    config.blob.max_retries = 3;
    config.blob.min_wait_msec = 16;
    config.blob.max_wait_msec = 17;
    let options = registry_options(&config);
    assert_eq!(options.connect_timeout, millis(11));
    assert_eq!(options.head_timeout, millis(12));
    assert_eq!(options.idle_timeout, millis(1_300));
    let waits = |policy: &RetryPolicy| (policy.max_retries, policy.min_wait, policy.max_wait);
    assert_eq!(waits(&options.retry), (0, millis(14), millis(15)));
    assert_eq!(waits(&options.blob_retry), (3, millis(16), millis(17)));
    config.blob.fetching_timeout_sec = 1;
    assert_eq!(registry_options(&config).idle_timeout, seconds(1));
    // A long limit does not make a stalled body wait longer.
    let defaults = soci_registry::Options::default();
    let options = registry_options(&Config::default());
    assert_eq!(options.idle_timeout, defaults.idle_timeout);
}

#[test]
fn keys_of_pulls_reach_the_images() {
    let mut config = Config::default();
    let options = image_options(&config);
    assert!(options.modes.v2 && !options.modes.v1);
    assert!(options.background && !options.prefetch);
    assert_eq!((options.patience, options.ahead), (seconds(30), 100));
    config.service.mount_timeout_sec = -1;
    config.service.max_concurrency = 0;
    config.background_fetch.disable = true;
    config.prefetch.enable = true;
    config.pull_modes.soci_v1.enable = true;
    config.pull_modes.soci_v2.enable = false;
    let options = image_options(&config);
    assert!(options.modes.v1 && !options.modes.v2);
    assert!(!options.background && options.prefetch);
    assert_eq!(
        (options.patience, options.ahead),
        (Duration::ZERO, usize::MAX)
    );
    config.snapshotter.trust = Trust::Verified;
    assert!(
        image_options(&config).background,
        "verified layers are complete"
    );
}

#[test]
fn the_switches_of_the_parallel_mode_select_the_images() {
    for (enable, fallback, wanted) in [
        (None, false, Parallel::WithoutIndex),
        (None, true, Parallel::WithoutIndex),
        (Some(false), false, Parallel::Never),
        (Some(false), true, Parallel::WithoutIndex),
        (Some(true), false, Parallel::Always),
        (Some(true), true, Parallel::Always),
    ] {
        let mut config = Config::default();
        let keys = &mut config.pull_modes.parallel_pull_unpack;
        keys.enable = enable;
        keys.experimental_parallel_pull_as_fallback = fallback;
        assert_eq!(parallel(&config), wanted, "{enable:?} {fallback}");
    }
}
