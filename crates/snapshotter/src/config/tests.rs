use super::*;

fn parse(text: &str) -> Config {
    parse_with_remarks(text).0
}

fn parse_with_remarks(text: &str) -> (Config, Remarks) {
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
    assert!(config.pull_modes.soci_v2.enable);
    assert!(!config.pull_modes.soci_v1.enable);
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

/// Every key of the reference and ours, with a value that is not its default.
const EVERY_KEY: &str = include_str!("tests/every.toml");

#[test]
fn every_key_is_read_and_printed() {
    let (config, remarks) = parse_with_remarks(EVERY_KEY);
    assert_eq!(remarks.unknown, Vec::<String>::new());
    assert_eq!(dump(&config), EVERY_KEY);
    let default = Config::default();
    for section in SECTIONS.iter().filter(|section| !section.is_pattern()) {
        let values = (section.values)(&config).into_iter();
        for (key, (value, default)) in section
            .keys
            .iter()
            .zip(values.zip((section.values)(&default)))
        {
            let differs = key.is_table() || value != default;
            assert!(differs, "{} is not in the file", section.path_of(key));
        }
    }
    let mirror = Mirror {
        host: "mirror.example:5000".to_owned(),
        insecure: true,
        request_timeout_sec: 12,
    };
    assert_eq!(config.resolver.host["docker.io"].mirrors[0], mirror);
    let gzip = &config.pull_modes.parallel_pull_unpack.decompress_streams["gzip"];
    assert_eq!(gzip.args, ["-d", "it's"]);
}

/// The file in the form that the reference's documentation describes. Its bytes are a contract:
/// scripts compare the file with the output of `config default`.
#[test]
fn the_defaults_are_printed_as_the_reference_prints_them() {
    assert_eq!(defaults(), include_str!("tests/default.toml"));
}

#[test]
fn the_switch_of_the_parallel_mode_is_printed_if_it_is_set() {
    for text in ["true", "false"] {
        let config = parse(&format!(
            "[pull_modes.parallel_pull_unpack]\nenable = {text}\ndiscard_unpacked_layers = true\n"
        ));
        let printed = dump(&config);
        assert!(
            printed.contains(&format!("\n    enable = {text}\n")),
            "{printed}"
        );
        assert_eq!(parse(&printed), config);
    }
}

#[test]
fn what_is_printed_is_read_again() {
    assert_eq!(parse(&dump(&Config::default())), Config::default());
    let odd = "[resolver.host.\"a.b'c\\\"\\n\\u0007\"]\n[resolver.host.'x.y']\nmirrors = [{ host = 'm' }]\n\
               [snapshotter]\nmount = 'none'\n[cache]\nmax_bytes = 5\n";
    let config = parse(odd);
    assert_eq!(parse(&dump(&config)), config, "{}", dump(&config));
    assert!(dump(&config).contains("\n[snapshotter]\n  min_layer_size = 0\n"));
}

#[test]
fn values_are_printed_in_their_effective_form() {
    for (text, wanted) in [
        ("max_concurrency = -5", "\nmax_concurrency = 0\n"),
        ("[blob]\ncheck_always = true", "\n  valid_interval = 0\n"),
        (
            "[blob]\nmax_span_verification_retries = -2",
            "\n  max_span_verification_retries = 3\n",
        ),
        (
            "[prefetch]\nmax_concurrency = -1",
            "\n  max_concurrency = 0\n",
        ),
        (
            "[content_store]\ncontainerd_address = 'unix:///c.sock'",
            "\n  containerd_address = '/c.sock'\n",
        ),
        (
            "[cri_keychain]\nimage_service_path = 'unix:///c.sock'",
            "\n  image_service_path = '/c.sock'\n",
        ),
        ("[http]\nMaxRetries = -1\n", "\n  MaxRetries = -1\n"),
    ] {
        let found = dump(&parse(text));
        assert!(found.contains(wanted), "{text}: {found}");
    }
    assert_eq!(parse("max_concurrency = -5").service.ahead(), usize::MAX);
    assert_eq!(parse("max_concurrency = 7").service.ahead(), 7);
    // Settings of [http] do not reach [blob].
    assert_eq!(parse("[http]\nMaxRetries = 2").blob.max_retries, 8);
}

#[test]
fn limits_of_the_parallel_mode_may_stand_under_blob() {
    let (config, remarks) = parse_with_remarks(
        "[blob]\nmax_concurrent_downloads = 20\nMax_Concurrent_Unpacks = 7\nmax_retries = 3\n\
         concurrent_download_chunk_size = '8mb'\ndiscard_unpacked_layers = true\n\
         max_concurrent_downloads_per_image = 9\nmax_concurrent_unpacks_per_image = 2\n\
         [pull_modes.parallel_pull_unpack]\nmax_concurrent_unpacks = 4\n",
    );
    let parallel = &config.pull_modes.parallel_pull_unpack;
    assert_eq!(
        *parallel,
        Parallel {
            max_concurrent_downloads: 20,
            max_concurrent_downloads_per_image: 9,
            concurrent_download_chunk_size: "8mb".to_owned(),
            max_concurrent_unpacks: 4,
            max_concurrent_unpacks_per_image: 2,
            discard_unpacked_layers: true,
            ..Parallel::default()
        }
    );
    assert_eq!(parallel.chunk_size().unwrap().unwrap().get(), 8 << 20);
    assert_eq!(remarks.moved.taken.len(), 5, "{remarks:?}");
    assert_eq!(remarks.moved.overridden, ["max_concurrent_unpacks"]);
    assert_eq!(remarks.unknown, Vec::<String>::new());
    assert_eq!(config.blob.max_retries, 3);
    let (_, remarks) = parse_with_remarks("[blob]\nmax_retries = 3\n");
    assert_eq!(remarks.moved, Default::default());
}

#[test]
fn limits_of_the_parallel_mode_are_checked_if_it_is_on() {
    let with = |mode: &str, keys: &str| {
        format!(
            "[content_store]\ntype = 'containerd'\n[pull_modes.parallel_pull_unpack]\n{mode} = true\n{keys}\n"
        )
    };
    let modes = ["enable", "experimental_parallel_pull_as_fallback"];
    for mode in modes {
        for (keys, wanted) in [
            (
                "max_concurrent_downloads = 2\nmax_concurrent_unpacks = 1\nmax_concurrent_unpacks_per_image = 5",
                &[
                    "max_concurrent_downloads_per_image = 3 exceeds",
                    "max_concurrent_unpacks_per_image = 5 exceeds",
                ][..],
            ),
            (
                "decompress_streams.gzip.path = '/nobody/has/this'",
                &["not an executable file"],
            ),
            (
                "decompress_streams.zstd.path = '/bin/a;b'",
                &["/bin/a;b", "contains one of"],
            ),
        ] {
            let text = refused(&with(mode, keys));
            for wanted in wanted {
                assert!(text.contains(wanted), "{text}");
            }
            parse(&with(mode, keys).replace("= true", "= false"));
        }
        parse(&with(
            mode,
            "max_concurrent_downloads = 3\ndecompress_streams.gzip.path = '/bin/sh'",
        ));
        parse(&with(
            mode,
            "max_concurrent_downloads = 0\nmax_concurrent_downloads_per_image = 50",
        ));
    }
    let text =
        refused("[pull_modes.parallel_pull_unpack]\nconcurrent_download_chunk_size = '1mib'");
    assert!(text.contains("invalid size format \"1mib\""), "{text}");
    let (_, remarks) = parse_with_remarks(&with("enable", "decompress_streams.lz4.path = '/x'"));
    assert_eq!(remarks.algorithms, ["lz4"]);
}

#[test]
fn the_parallel_mode_needs_a_place_for_the_layers() {
    for mode in ["enable", "experimental_parallel_pull_as_fallback"] {
        let on = format!("[pull_modes.parallel_pull_unpack]\n{mode} = true\n");
        let text = refused(&on);
        assert!(text.contains("needs [content_store] type"), "{text}");
        parse(&format!("{on}discard_unpacked_layers = true\n"));
        parse(&format!("{on}[content_store]\ntype = 'containerd'\n"));
    }
}

#[test]
fn set_keys_without_effect_are_named() {
    let (_, remarks) = parse_with_remarks(
        "debug_address = ':1'\ndebug = false\nmax_concurrency = 4\n[directory_cache]\ndirect = true\nsync_add = true\n\
         [fuse]\nattr_timeout = 0\n",
    );
    assert_eq!(
        remarks.unused,
        ["debug_address", "directory_cache.sync_add"]
    );
    assert_eq!(parse_with_remarks("").1, Remarks::default());
}

#[test]
fn unknown_keys_and_tables_are_ignored_and_named() {
    let text = "nobody_knows = 1\n[http]\nother = 'x'\nDIALTIMEOUTMSEC = 3000\n[directory_cache]\ndirect = true\n\
         [registries.configs.\"h\".auth]\nusername = 'u'\n[pull_modes.parallel_pull_unpack]\nenable = false\nfast = 1\n\
         [content_store]\nnamespace = 'x'\n[[resolver.host.\"docker.io\".mirrors]]\nhots = 'y'\n[Mirror]\nendpoint = {}\n";
    let (config, remarks) = parse_with_remarks(text);
    let mut wanted = Config {
        resolver: config.resolver.clone(),
        ..Config::default()
    };
    wanted.pull_modes.parallel_pull_unpack.enable = Some(false);
    assert_eq!(config, wanted);
    assert_eq!(remarks.unknown.len(), 7);
    assert_eq!(
        unknown_keys(text),
        [
            "Mirror",
            "content_store.namespace",
            "http.other",
            "nobody_knows",
            "pull_modes.parallel_pull_unpack.fast",
            "registries",
            "resolver.host.docker.io.mirrors.hots",
        ]
    );
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
    for (text, wanted) in [
        (
            "[content_store]\ntype = 'other'",
            "unknown content store type \"other\"",
        ),
        (
            "metadata_store = 'other'",
            "unknown metadata store type \"other\"",
        ),
        (
            "[background_fetch]\ndrop_policy = 'other'",
            "unknown drop policy \"other\"",
        ),
    ] {
        let text = refused(text);
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("failed to load config file"), "{text}");
    }
}

#[test]
fn every_key_of_a_wrong_type_is_refused() {
    for section in SECTIONS {
        let path = section.path.replace('*', "any");
        let header = match section.path {
            "" => String::new(),
            "resolver.host.*.mirrors" => format!("[[{path}]]\n"),
            _ => format!("[{path}]\n"),
        };
        for key in section.keys {
            let text = refused(&format!("{header}{} = 1.5\n", key.name));
            assert!(text.contains("failed to load config file"), "{text}");
            assert!(text.contains(key.name), "{}: {text}", key.name);
        }
    }
}

/// To write the page anew: `SOCI_WRITE_DOCS=1 cargo test -p soci-snapshotter the_page`.
#[test]
fn the_page_about_the_configuration_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    if std::env::var_os("SOCI_WRITE_DOCS").is_some() {
        std::fs::write(&page, document()).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(found == document(), "docs/config.md differs from the code");
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

#[test]
fn keychains_and_plugins_are_off_and_empty_values_mean_the_defaults() {
    let config = parse("");
    assert!(!config.credential_providers.is_set());
    assert!(!config.cri_keychain.enable_keychain);
    assert!(!config.kubeconfig_keychain.enable_keychain);
    let config =
        parse("[credential_providers]\ntimeout_sec = 0\n[cri_keychain]\nimage_service_path = ''\n");
    assert_eq!(config, Config::default());
    let config = parse(
        "[credential_providers]\nconfig = '/c'\nBin_Dir = '/b'\n[cri_keychain]\n\
         enable_keychain = true\nimage_service_path = 'unix:///r/c.sock'\n",
    );
    assert!(config.credential_providers.is_set());
    assert_eq!(config.credential_providers.bin_dir, "/b");
    assert_eq!(config.cri_keychain.image_service_path, "/r/c.sock");
    refused("[cri_keychain]\nenable_keychain = 'yes'");
}

#[test]
fn registry_settings_are_in_folders_separated_by_colons() {
    for (text, folders) in [
        ("", &["/etc/containerd/certs.d", "/etc/docker/certs.d"][..]),
        ("[registry]\nconfig_path = '/a'", &["/a"]),
        ("[registry]\nconfig_path = '/a::/b:'", &["/a", "/b"]),
        ("[registry]\nConfig_Path = ''", &[]),
        // Tables of old versions of the reference.
        (
            "[registry.mirrors.x]\nendpoint = 1\n[registry]\nconfig_path = '/a'",
            &["/a"],
        ),
    ] {
        let config = parse(text);
        let expected: Vec<_> = folders.iter().map(std::path::PathBuf::from).collect();
        assert_eq!(config.registry.folders(), expected, "{text}");
    }
}

#[test]
fn background_downloads_have_a_pace_on_request() {
    let pace = parse(
        "[background_fetch]\nmode = 'paced'\nsilence_period_msec = 7\nfetch_period_msec = 0\n\
         max_queue_size = -1\ndrop_policy = 'oldest'\n",
    );
    let expected = BackgroundFetch {
        mode: FetchMode::Paced,
        silence_period_msec: 7,
        max_queue_size: -1,
        drop_policy: "oldest".to_owned(),
        ..BackgroundFetch::default()
    };
    assert_eq!(pace.background_fetch, expected);
    assert_eq!(expected.fetch_period_msec, 500);
    let empty = parse("[background_fetch]\ndrop_policy = ''\nmax_queue_size = 0\n");
    assert_eq!(empty, Config::default());
    let zero = parse("[snapshotter]\nlazy_usage = 'zero'\n");
    assert_eq!(zero.snapshotter.lazy_usage, LazyUsage::Zero);
}
