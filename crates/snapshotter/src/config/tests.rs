use super::*;

fn parse(text: &str) -> Config {
    Config::parse(Path::new("config.toml"), text).unwrap()
}

fn refused(text: &str) -> String {
    let error = Config::parse(Path::new("config.toml"), text).unwrap_err();
    let cause = std::error::Error::source(&error)
        .map(ToString::to_string)
        .unwrap_or_default();
    format!("{error}: {cause}")
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parse("");
    assert_eq!(config, Config::default());
    assert_eq!(config.service.mount_timeout_sec, 30);
    assert_eq!(config.service.max_concurrency, 100);
    assert_eq!(config.blob.read_budget_sec, 300);
    assert_eq!(config.http.max_retries, 8);
    assert!(config.pull_modes.v2());
    assert!(!config.pull_modes.v1());
    assert!(!config.background_fetch.disable);
    assert_eq!(config.content_store.kind(), ContentStoreKind::Soci);
}

#[test]
fn zero_means_the_default() {
    let config = parse(
        "mount_timeout_sec = 0\nmax_concurrency = 0\n[http]\nMaxRetries = 0\n\
         [blob]\nread_budget_sec = 0\n[content_store]\ntype = ''\ncontainerd_address = ''\n",
    );
    assert_eq!(config, Config::default());
    assert_eq!(parse("metrics_network = ''"), Config::default());
}

#[test]
fn metrics_are_served_at_an_address_unless_switched_off() {
    for (text, wanted) in [
        ("", false),
        ("metrics_address = ':1'", true),
        ("metrics_address = ':1'\nno_prometheus = true", false),
        ("metrics_network = 'unix'", false),
    ] {
        assert_eq!(parse(text).service.serves_metrics(), wanted, "{text}");
    }
}

/// Every key that has an effect, with a value that is not its default.
const EVERY_KEY: &str = r#"
disable_verification = true
mount_timeout_sec = 5
max_concurrency = -1
skip_check_snapshotter_supported = true
no_prometheus = true
metrics_address = "127.0.0.1:9900"
metrics_network = "tcp4"
debug_address = "127.0.0.1:9901"

[http]
DialTimeoutMsec = 1
ResponseHeaderTimeoutMsec = 2
RequestTimeoutMsec = 3
MaxRetries = -4
MinWaitMsec = 5
MaxWaitMsec = 6

[blob]
fetching_timeout_sec = 7
max_retries = 8
min_wait_msec = 9
max_wait_msec = 10
max_span_verification_retries = -1
read_budget_sec = 11

[background_fetch]
disable = true

[cache]
max_bytes = 14
min_free_bytes = -1

[content_store]
type = "containerd"
containerd_address = "unix:///run/c.sock"

[pull_modes.soci_v1]
enable = true
[pull_modes.soci_v2]
enable = false

[resolver.host."docker.io"]
mirrors = [{ host = "mirror.example:5000", insecure = true, request_timeout_sec = 12 }]

[snapshotter]
min_layer_size = 13
allow_invalid_mounts_on_restart = true
trust = "verified"
"#;

#[test]
fn every_key_is_read() {
    let config = parse(EVERY_KEY);
    assert_eq!(
        config.service,
        Service {
            disable_verification: true,
            max_concurrency: -1,
            mount_timeout_sec: 5,
            skip_check_snapshotter_supported: true,
            no_prometheus: true,
            metrics_address: "127.0.0.1:9900".to_owned(),
            metrics_network: "tcp4".to_owned(),
            debug_address: "127.0.0.1:9901".to_owned(),
        }
    );
    let cache = Cache {
        max_bytes: 14,
        min_free_bytes: -1,
    };
    assert_eq!(config.cache, cache);
    assert_eq!(config.snapshotter.trust, Trust::Verified);
    assert_eq!(
        config.http,
        Http {
            dial_timeout_msec: 1,
            response_header_timeout_msec: 2,
            request_timeout_msec: 3,
            max_retries: -4,
            min_wait_msec: 5,
            max_wait_msec: 6,
        }
    );
    assert_eq!(
        config.blob,
        Blob {
            fetching_timeout_sec: 7,
            max_retries: 8,
            min_wait_msec: 9,
            max_wait_msec: 10,
            max_span_verification_retries: 3,
            read_budget_sec: 11,
        }
    );
    assert!(config.background_fetch.disable);
    assert_eq!(config.content_store.kind(), ContentStoreKind::Containerd);
    assert_eq!(config.content_store.containerd_address, "/run/c.sock");
    assert!(config.pull_modes.v1() && !config.pull_modes.v2());
    let mirror = Mirror {
        host: "mirror.example:5000".to_owned(),
        insecure: true,
        request_timeout_sec: 12,
    };
    assert_eq!(config.resolver.host["docker.io"].mirrors, [mirror]);
    assert_eq!(config.snapshotter.min_layer_size, 13);
}

#[test]
fn unknown_keys_and_tables_are_ignored() {
    let config = parse(
        "nobody_knows = 1\n[http]\nother = 'x'\n[directory_cache]\ndirect = true\n\
         [registry.configs.\"h\".auth]\nusername = 'u'\n[pull_modes.parallel_pull_unpack]\nenable = false\n",
    );
    assert_eq!(config, Config::default());
}

#[test]
fn keys_are_found_in_another_case_and_exact_ones_win() {
    let config = parse("MOUNT_TIMEOUT_SEC = 4\n[HTTP]\nmaxretries = 3\nMaxRetries = 2\n");
    assert_eq!(config.service.mount_timeout_sec, 4);
    assert_eq!(config.http.max_retries, 2);
    assert_eq!(parse("[http]\nmaxretries = 3\n").http.max_retries, 3);
}

#[test]
fn wrong_types_are_refused_with_the_key() {
    for (text, key) in [
        ("mount_timeout_sec = 'soon'", "mount_timeout_sec"),
        ("[http]\nMaxRetries = 'x'", "MaxRetries"),
        ("[background_fetch]\ndisable = 1", "disable"),
        ("[fuse]\nattr_timeout = true", "attr_timeout"),
        ("http = 3", "http"),
        ("a = 1\na = 2", "a"),
    ] {
        let text = refused(text);
        assert!(text.contains("failed to load config file"), "{text}");
        assert!(text.contains(key), "{key}: {text}");
    }
    let text = refused("[content_store]\ntype = 'other'");
    assert!(
        text.contains("unknown content store type \"other\""),
        "{text}"
    );
}

#[test]
fn only_the_default_file_may_be_missing() {
    let folder = tempfile::tempdir().unwrap();
    let error = Config::load(&folder.path().join("config.toml")).unwrap_err();
    assert!(
        error.to_string().contains("failed to open config file"),
        "{error}"
    );
    if !Path::new(DEFAULT_PATH).exists() {
        assert_eq!(
            Config::load(Path::new(DEFAULT_PATH)).unwrap(),
            Config::default()
        );
    }
}
