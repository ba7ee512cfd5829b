use super::*;

#[test]
fn statuses_worth_another_attempt() {
    for status in [408, 429, 500, 502, 503, 504, 599] {
        assert!(is_transient_status(status), "{status}");
    }
    for status in [200, 206, 301, 400, 401, 403, 404, 416, 501] {
        assert!(!is_transient_status(status), "{status}");
    }
}

#[test]
fn a_failure_says_what_it_is_about() {
    let url = || RedactedUrl::new("https://registry.example/v2/");
    let transport = |connected| FetchError::Transport {
        url: url(),
        connected,
        transient: true,
        source: Arc::new(std::io::Error::other("broken")),
    };
    let status = |status, retry_after| FetchError::Status {
        status,
        detail: String::new(),
        retry_after,
        url: url(),
    };
    let gave_up = |last| FetchError::GaveUp {
        attempts: 9,
        last: Box::new(last),
    };
    assert_eq!(transport(false).concern(), Concern::Host);
    assert_eq!(gave_up(transport(false)).concern(), Concern::Host);
    assert_eq!(transport(true).concern(), Concern::Blob);
    // A failure of the redirect's target says nothing about the registry.
    assert_eq!(
        transport(false).behind_redirect(&url()).concern(),
        Concern::Blob
    );
    assert_eq!(status(401, None).concern(), Concern::Repository);
    assert_eq!(status(403, None).concern(), Concern::Repository);
    assert_eq!(
        status(403, None).behind_redirect(&url()).concern(),
        Concern::Blob
    );
    for code in [404, 500, 503] {
        assert_eq!(status(code, None).concern(), Concern::Blob);
    }
    let minute = Some(Duration::from_secs(60));
    assert!(
        status(429, minute)
            .to_string()
            .ends_with("429 (it asks for a wait of 60 s)")
    );
    assert_eq!(gave_up(status(503, minute)).busy(), minute);
    assert!(status(503, None).is_worth_repeating());
    assert!(!gave_up(status(503, None)).is_worth_repeating());
    let denied = status(403, None).behind_redirect(&url());
    assert!(!denied.is_transient() && !denied.is_worth_repeating() && denied.is_refusal());
    let denied = status(403, None);
    assert!(denied.is_transient() && !denied.is_worth_repeating() && denied.is_refusal());
    assert_eq!(status(503, None).busy(), None);
    assert_eq!(status(500, minute).busy(), None);
    let token = FetchError::Token {
        host: "registry.example".to_owned(),
        repository: "app".to_owned(),
        source: Box::new(transport(false)),
    };
    assert_eq!(token.concern(), Concern::Repository);
    assert!(token.is_transient() && !token.is_worth_repeating());
    let denied = FetchError::Redirected {
        url: url(),
        source: Box::new(FetchError::Token {
            host: "storage.example".to_owned(),
            repository: "app".to_owned(),
            source: Box::new(status(403, None)),
        }),
    };
    assert!(!denied.is_transient() && denied.is_refusal());
}

#[test]
fn an_outage_behind_a_redirect_is_not_over_when_the_host_redirects_again() {
    let url = || RedactedUrl::new("https://mirror.example/v2/");
    let status = |status| FetchError::Status {
        status,
        detail: String::new(),
        retry_after: None,
        url: url(),
    };
    let silent = FetchError::Silent {
        url: url(),
        idle: Duration::from_secs(1),
    };
    for error in [silent]
        .into_iter()
        .chain([429, 500, 502, 503, 504].map(status))
    {
        assert_eq!(error.failure(), Some(Failure::Silent), "{error}");
        let error = error.behind_redirect(&url());
        assert_eq!(error.failure(), Some(Failure::Broken), "{error:?}");
        assert!(error.is_worth_repeating(), "{error:?}");
    }
    for error in [404, 416].map(status) {
        assert_eq!(error.behind_redirect(&url()).failure(), None);
    }
}
