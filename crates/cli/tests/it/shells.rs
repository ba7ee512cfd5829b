//! Completion scripts and manual pages.

use std::fs;
use std::process::Command;

use crate::soci::{Ran, names, run};

/// The completions that bash suggests for the last of these words.
fn proposed(script: &str, words: &[&str]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("soci.bash"), script).unwrap();
    fs::write(folder.path().join("image.tar"), "").unwrap();
    fs::create_dir(folder.path().join("images")).unwrap();
    let line = "source ./soci.bash; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _soci; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let output = Command::new("bash")
        .args(["--norc", "-c", line, "bash"])
        .args(words)
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let script = run(["completion", "bash"]).stdout;
    for (words, expected) in [
        (&["soci", "c"][..], "create convert completion"),
        (&["soci", "index", ""], "list ls info remove rm"),
        (&["soci", "--debug", "-n", "x", "ztoc", "g"], "get-file"),
        (&["soci", "-a", "index", "c"], "create convert completion"),
        (&["soci", "index", "ls", "--q"], "--quiet"),
        (&["soci", "index", "ls", "--pl"], "--platform"),
        (&["soci", "push", "--existing-index", ""], "warn skip allow"),
        (&["soci", "push", "--existing-index", "=", "s"], "skip"),
        (&["soci", "convert", "--format", "="], "oci-archive oci-dir"),
        (
            &["soci", "convert", "--format=x", "--standa"],
            "--standalone",
        ),
        (
            &["soci", "convert", "--standalone", "im"],
            "image.tar images",
        ),
        (&["soci", "--root", "im"], "images"),
        (&["soci", "convert", "--span-size", ""], ""),
        (&["soci", "completion", ""], "bash zsh fish"),
        (&["soci", "--content-store", ""], "containerd soci"),
        (&["soci", "create", "--hel"], "--help"),
    ] {
        let mut got = proposed(&script, words);
        let mut expected: Vec<&str> = expected.split_whitespace().collect();
        got.sort();
        expected.sort_unstable();
        assert_eq!(got, expected, "{words:?}");
    }
}

#[test]
fn scripts_of_all_shells_know_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(["completion", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
        for part in [
            "create",
            "get-file",
            "rebuild-db",
            "oci-archive",
            "existing-index",
        ] {
            assert!(ran.stdout.contains(part), "{shell}: {part}");
        }
        // The command for packagers is not suggested to users.
        assert!(!ran.stdout.contains("soci man"), "{shell}");
    }
}

#[test]
fn shells_without_a_script_are_refused() {
    for (words, message) in [
        (
            &["completion"][..],
            "please name a shell: bash, zsh or fish",
        ),
        (
            &["completion", "tcsh"],
            "no completion for \"tcsh\"; choose one of bash, zsh or fish",
        ),
    ] {
        let expected = Ran {
            code: Some(1),
            stdout: String::new(),
            stderr: format!("soci: {message}\n"),
        };
        assert_eq!(run(words), expected);
    }
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("share/man1");
    let ran = run(["man".as_ref(), pages.as_os_str()]);
    assert_eq!(
        (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
        (Some(0), "", "")
    );
    let names = names(&pages);
    for name in [
        "soci.1",
        "soci-convert.1",
        "soci-index.1",
        "soci-index-list.1",
        "soci-ztoc-get-file.1",
    ] {
        assert!(names.iter().any(|it| it == name), "{name} in {names:?}");
    }
    let page = fs::read_to_string(pages.join("soci-convert.1")).unwrap();
    for part in [
        ".TH SOCI-CONVERT 1",
        "soci\\-convert \\- Copy an image",
        ".B \\-\\-format FORMAT",
        ".SH EXAMPLES",
        ".SH EXIT STATUS",
        "\\fBsoci\\fR(1)",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let missing = run(["man"]);
    assert_eq!(missing.code, Some(1));
    assert_eq!(missing.stderr, "soci: please name a folder for the pages\n");
}
