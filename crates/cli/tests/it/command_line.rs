//! Errors, exit codes, output streams, and help.

use std::fs;
use std::process::Stdio;

use crate::soci::{Ran, command, convert, member, one_layer, run, tar};

fn failed(message: &str) -> Ran {
    Ran {
        code: Some(1),
        stdout: String::new(),
        stderr: format!("soci: {message}\n"),
    }
}

#[test]
fn an_image_that_would_not_be_verified_is_refused() {
    let ran = run(["verify", "one.tar", "two.tar"]);
    assert_eq!(
        ran,
        failed("verify checks one image at a time: run it once for each")
    );
}

#[test]
fn operands_that_no_command_would_use_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = format!("--root={}", folder.path().join("root").display());
    for (words, message) in [
        (
            &["convert", "a", "b", "c", "d"][..],
            r#""c": convert takes only <image> <destination>"#,
        ),
        (
            &["convert", "--standalone", "a", "--", "b", "--c"],
            r#""--c": convert takes only <image> <destination>"#,
        ),
        (&["create", "a", "b"], r#""b": create takes only <image>"#),
        (&["push", "a", "b"], r#""b": push takes only <image>"#),
        (
            &["index", "info", "a", "b"],
            r#""b": index info takes only <digest>"#,
        ),
        (
            &["index", "ls", "a"],
            r#""a": index list takes no arguments"#,
        ),
        (
            &["ztoc", "list", "a"],
            r#""a": ztoc list takes no arguments"#,
        ),
        (
            &["ztoc", "info", "a", "b"],
            r#""b": ztoc info takes only <digest>"#,
        ),
        (
            &["prefetch", "info", "a", "b"],
            r#""b": prefetch info takes only <digest>"#,
        ),
        (
            &["prefetch", "list", "a"],
            r#""a": prefetch list takes no arguments"#,
        ),
        (&["status", "a", "b"], r#""b": status takes only <image>"#),
        (
            &["rebuild-db", "a"],
            r#""a": rebuild-db takes no arguments"#,
        ),
        (
            &["completion", "bash", "zsh"],
            r#""zsh": completion takes only <shell>"#,
        ),
        (&["man", "a", "b"], r#""b": man takes only <folder>"#),
    ] {
        let line = [&root].map(String::as_str).into_iter();
        let ran = run(line.chain(words.iter().copied()));
        let command = message.split_once(": ").unwrap().1;
        let command = command.split_once(" takes").unwrap().0;
        let message = format!("unexpected argument {message}; see `soci {command} --help`");
        assert_eq!(ran, failed(&message));
    }
    assert!(!folder.path().join("root").exists());
}

#[test]
fn errors_of_convert_have_the_documented_texts() {
    let root = tempfile::tempdir().unwrap();
    let root = format!("--root={}", root.path().display());
    for (words, message) in [
        (&[][..], "source image needs to be specified"),
        (&["a"], "destination needs to be specified"),
        (
            &["--root", "", "--standalone"],
            "source image needs to be specified",
        ),
        (&["", "b"], "source image needs to be specified"),
        (
            &["--standalone", "/does/not/exist", "b"],
            "failed to access input /does/not/exist: stat /does/not/exist: no such file or directory",
        ),
        (
            &["--optimizations", "fast", "a", "b"],
            "optimization fast is not a valid optimization [xattr]",
        ),
        (&["--span-size", "-1", "a", "b"], "span size must be >= 0"),
        (
            &["--min-layer-size=-1", "a", "b"],
            "min layer size must be >= 0",
        ),
        (
            &["-p", "linux/*", "a", "b"],
            "could not parse platform linux/*: \"linux/*\": wildcards not yet supported: invalid argument",
        ),
        (
            &["a", "multi:foo"],
            "the destination image must be a tagged ref of the form \"registry/repository:tag\": could not parse reference: parse \"dummy://multi:foo\": invalid port \":foo\" after host",
        ),
        (
            &["a", "reg.example/app"],
            "the destination image must be a tagged ref of the form \"registry/repository:tag\": reference must be tagged",
        ),
        (
            &["--content-store", "tape", "a", "reg.example/app:1"],
            "unknown content store type: tape; must be one of [soci containerd]",
        ),
        (
            &[
                "--timeout",
                "50ms",
                "--address",
                "/does/not/exist.sock",
                "a",
                "reg.example/app:1",
            ],
            "context deadline exceeded while waiting for connections to become ready: context deadline exceeded",
        ),
    ] {
        let line = ["convert", &root].into_iter().chain(words.iter().copied());
        assert_eq!(run(line), failed(message), "{words:?}");
    }
}

#[test]
fn the_folder_of_the_program_is_made_unless_it_is_not_needed() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a/b");
    let flag = format!("--root={}", root.display());
    run(["convert", "--standalone", &flag, "/does/not/exist", "b"]);
    assert!(!root.exists());
    run(["convert", &flag]);
    assert!(root.is_dir());
    fs::write(folder.path().join("file"), "").unwrap();
    let flag = format!("--root={}/file/x", folder.path().display());
    let ran = run(["convert", &flag, "a", "reg.example/b:1"]);
    let shown = flag.trim_start_matches("--root=");
    assert_eq!(ran, failed(&format!("mkdir {shown}: not a directory")));
}

#[test]
fn usage_errors_show_help_and_exit_1() {
    for (words, message) in [
        (
            &["convert", "--bogus"][..],
            "flag provided but not defined: -bogus",
        ),
        (
            &["convert", "--span-size"],
            "flag needs an argument: --span-size",
        ),
        (
            &["convert", "--span-size", "4MiB"],
            "invalid value \"4MiB\" for flag -span-size: strconv.ParseInt: parsing \"4MiB\": invalid syntax",
        ),
        (
            &["convert", "--format", "zip", "a", "b"],
            "invalid value \"zip\" for flag -format: unsupported output format \"zip\": must be \"oci-archive\" or \"oci-dir\"",
        ),
        (
            &["convert", "--force=maybe"],
            "invalid value \"maybe\" for flag -force: parse error",
        ),
        (
            &["--timeout", "5", "convert"],
            "invalid value \"5\" for flag -timeout: time: missing unit in duration \"5\"",
        ),
    ] {
        let ran = run(words);
        assert_eq!(
            ran.stderr,
            format!("Incorrect Usage: {message}\n\nsoci: {message}\n")
        );
        assert_eq!(ran.code, Some(1));
        assert!(
            ran.stdout.contains("USAGE:\n   soci convert "),
            "{}",
            ran.stdout
        );
    }
}

#[test]
fn a_format_that_does_not_fit_is_refused() {
    for (format, to) in [
        ("oci-dir", "oci-archive:x.tar"),
        ("oci-dir", "-"),
        ("oci-archive", "oci:x"),
        ("oci-archive", "docker://r.example/app:1"),
    ] {
        let ran = run(["convert", "--standalone", "--format", format, "none", to]);
        let message = "--format is for a path and does not fit here; leave it out";
        assert_eq!(ran, failed(&format!("{to}: {message}")));
    }
}

#[test]
fn a_forgotten_transport_is_asked_about() {
    let name = "r.example/app:1";
    let ran = run(["convert", "--standalone", name, "x.tar"]);
    let expected = format!(
        "failed to access input {name}: stat {name}: no such file or directory; did you mean docker://{name}?"
    );
    assert_eq!(ran, failed(&expected));
    let ran = run(["convert", "--standalone", "none", name]);
    assert!(
        ran.stderr
            .contains(&format!("did you mean docker://{name}?")),
        "{ran:?}"
    );
    let ran = run(["create", "--standalone", name]);
    assert!(
        ran.stderr
            .ends_with(&format!("; did you mean docker://{name}?\n")),
        "{ran:?}"
    );
}

#[test]
fn unknown_commands_exit_3_with_one_line() {
    for words in [
        &["rpull"][..],
        &["help", "rpull"],
        &["--debug", "rpull", "x"],
    ] {
        let expected = Ran {
            code: Some(3),
            stdout: String::new(),
            stderr: "No help topic for 'rpull'\n".to_owned(),
        };
        assert_eq!(run(words), expected);
    }
}

#[test]
fn help_teaches_and_goes_to_standard_output() {
    for words in [&[][..], &["-h"], &["help"], &["--help"]] {
        let ran = run(words);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        for part in [
            "convert",
            "--address",
            "CONTAINERD_ADDRESS",
            "EXAMPLES:",
            "soci convert ",
        ] {
            assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
        }
    }
    let ran = run(["help", "convert"]);
    for part in [
        "<image>",
        "--standalone",
        "--platform",
        "4194304",
        "EXAMPLES:",
        "oci-dir",
    ] {
        assert!(ran.stdout.contains(part), "{part}: {}", ran.stdout);
    }
    assert_eq!(ran, run(["convert", "a", "--help"]));
}

#[test]
fn version_is_what_nerdctl_looks_for() {
    for flag in ["--version", "-v"] {
        let ran = run([flag]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
        let words: Vec<&str> = ran.stdout.split_whitespace().collect();
        assert_eq!(words[..2], ["soci", "version"]);
        assert_eq!(words.len(), 4, "{}", ran.stdout);
        let number = words[2].trim_start_matches('v');
        let mut parts = number
            .split(['.', '-'])
            .map(|part| part.parse::<u32>().unwrap());
        assert!(
            (parts.next(), parts.next()) >= (Some(0), Some(10)),
            "{number}"
        );
    }
}

#[test]
fn nothing_but_results_is_printed_on_pipes() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out.tar"));
    let layer = tar(&[member("f", b'0', "", b"content")]);
    one_layer(&input, &layer, false);
    let ran = convert(
        &["--debug", "--force", "-p", "linux/amd64"],
        &input,
        &output,
    );
    assert_eq!(
        (ran.code, ran.stderr.as_str(), ran.stdout.lines().count()),
        (Some(0), "", 1)
    );
    let ran = convert(&["--min-layer-size", "0x801"], &input, &output);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.starts_with("ztoc skipped - layer "), "{ran:?}");
    let expected = "soci: no ztocs created, all layers either skipped or produced errors\n";
    assert_eq!(ran.stderr, expected);
    // The reader of the results is gone, but the command still completes its work.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = command()
        .args(["convert", "--standalone", "--min-layer-size=0"])
        .args([&input, &output])
        .stdout(writer)
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success() && output.is_file());
}

#[test]
fn outputs_that_cannot_be_written_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    one_layer(
        &path("in"),
        &tar(&[member("f", b'0', "", b"content")]),
        false,
    );
    let ran = convert(&[], &path("in"), &path("no/such/out.tar"));
    let shown = path("no/such/out.tar").display().to_string();
    assert_eq!(
        ran,
        failed(&format!(
            "failed to create output tar {shown}: open {shown}: no such file or directory"
        ))
    );
    let ran = convert(&[], &path("in"), &path("in"));
    let shown = path("in").display().to_string();
    assert_eq!(
        ran,
        failed(&format!(
            "failed to create output tar {shown}: open {shown}: is a directory"
        ))
    );
}
