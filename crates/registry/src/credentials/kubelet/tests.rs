use std::os::unix::fs::symlink;

use super::*;

/// A directory with a configuration and plugins, which are shell scripts.
struct Setup {
    folder: tempfile::TempDir,
}

impl Setup {
    fn new(configs: &[(&str, String)]) -> Setup {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["config", "bin"] {
            std::fs::create_dir(folder.path().join(name)).expect("create a folder");
        }
        let setup = Setup { folder };
        for (name, text) in configs {
            setup.configure(name, text);
        }
        setup
    }

    /// One plugin `p` for `*.example.io`.
    fn one(script: &str) -> Setup {
        let setup = Setup::new(&[("a.yaml", config(&["p"]))]);
        setup.plugin("p", script);
        setup
    }

    /// Writes a configuration; `@` stands for the folder.
    fn configure(&self, name: &str, text: &str) {
        let path = self.folder.path().join("config").join(name);
        let text = text.replace('@', &self.folder.path().display().to_string());
        std::fs::write(path, text).expect("write the configuration");
    }

    /// A plugin that counts its runs and then runs the script. It is a link to the shell, because a
    /// new program cannot be started while another test's fork still holds it open for writing.
    fn plugin(&self, name: &str, script: &str) {
        let folder = self.folder.path();
        let text = format!("read -r question\necho x >> ${{0%.sh}}.runs\n{script}\n");
        std::fs::write(folder.join(format!("{name}.sh")), text).expect("write the script");
        let link = folder.join("bin").join(name);
        if !link.exists() {
            symlink("/bin/sh", link).expect("link to the shell");
        }
    }

    fn runs(&self, name: &str) -> usize {
        let text = std::fs::read_to_string(self.folder.path().join(format!("{name}.runs")));
        text.map_or(0, |text| text.lines().count())
    }

    fn open(&self) -> KubeletPlugins {
        KubeletPlugins::new(PluginOptions {
            config: self.folder.path().join("config"),
            bin_dir: self.folder.path().join("bin"),
            limit: Duration::from_secs(20),
        })
    }
}

fn config(names: &[&str]) -> String {
    let mut text =
        "kind: CredentialProviderConfig\napiVersion: kubelet.config.k8s.io/v1\nproviders:\n"
            .to_owned();
    for name in names {
        text += &format!(
            "- {{name: {name}, args: [@/{name}.sh], matchImages: ['*.example.io'], defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1}}\n"
        );
    }
    text
}

/// A script that answers with this user for all images that `key` matches.
fn says(user: &str, key_type: &str, holds: &str) -> String {
    format!(
        r#"echo '{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key_type}","cacheDuration":"{holds}","auth":{{"*.example.io":{{"username":"{user}","password":"p"}}}}}}'"#
    )
}

async fn ask(plugins: &KubeletPlugins, name: &str) -> Option<Credential> {
    let image = ImageRef::parse(name).expect("a name");
    plugins.get(image.host(), &image).await
}

fn user(name: &str) -> Option<Credential> {
    Some(Credential::new(name, "p"))
}

#[tokio::test]
async fn a_plugin_gets_its_question_arguments_and_environment() {
    let script = r#"u=$(echo "$question" | tr '"' "'")
echo "{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\"cacheKeyType\":\"Image\",\"auth\":{\"r.example.io\":{\"username\":\"$1 $REGION\",\"password\":\"$u\"}}}""#;
    let setup = Setup::one(script);
    let text = config(&["p"]).replace(
        "args: [@/p.sh]",
        "args: [@/p.sh, get], env: [{name: REGION, value: eu}]",
    );
    setup.configure("a.yaml", &text);
    let question = "{'kind':'CredentialProviderRequest','apiVersion':'credentialprovider.kubelet.k8s.io/v1','image':'r.example.io/team/app'}";
    assert_eq!(
        ask(&setup.open(), "r.example.io/team/app:1").await,
        Some(Credential::new("get eu", question))
    );
}

#[tokio::test]
async fn an_answer_is_used_for_what_it_says() {
    let images = [
        "a.example.io/x:1",
        "a.example.io/x:2",
        "a.example.io/y:1",
        "b.example.io/x:1",
    ];
    for (key_type, runs) in [("Image", 3), ("Registry", 2), ("Global", 1)] {
        let setup = Setup::one(&says("me", key_type, "1h"));
        let plugins = setup.open();
        for image in images {
            assert_eq!(ask(&plugins, image).await, user("me"), "{image}");
        }
        assert_eq!(setup.runs("p"), runs, "{key_type}");
        assert_eq!(ask(&plugins, "other.org/x:1").await, None);
        assert_eq!(setup.runs("p"), runs, "it is not for this image");
    }
}

#[tokio::test]
async fn an_answer_that_no_longer_holds_is_asked_for_anew() {
    let setup = Setup::one(&says("first", "Registry", "100ms"));
    let plugins = setup.open();
    assert_eq!(ask(&plugins, "a.example.io/x").await, user("first"));
    setup.plugin("p", &says("second", "Registry", "0s"));
    tokio::time::sleep(Duration::from_millis(120)).await;
    for runs in 2..4 {
        assert_eq!(ask(&plugins, "a.example.io/x").await, user("second"));
        assert_eq!(setup.runs("p"), runs, "zero means not kept");
    }
}

#[tokio::test]
async fn one_run_answers_all_who_wait_for_it() {
    let script = format!("sleep 0.2\n{}", says("me", "Registry", "0s"));
    let setup = Setup::one(&script);
    let plugins = setup.open();
    let names: Vec<_> = (0..8).map(|n| format!("a.example.io/{n}")).collect();
    let asked = names.iter().map(|name| ask(&plugins, name));
    let found = futures_util::future::join_all(asked).await;
    assert!(found.iter().all(|found| *found == user("me")), "{found:?}");
    assert_eq!(setup.runs("p"), 1);
}

#[tokio::test]
async fn plugins_run_at_the_same_time_for_different_images() {
    // Each run waits for the other one.
    let script = format!(
        "n=${{question##*/}}; n=${{n%%\\\"*}}; d=${{0%/*}}; : > $d/ran$n\nwhile ! [ -e $d/ran1 ] || ! [ -e $d/ran2 ]; do sleep 0.01; done\n{}",
        says("me", "Image", "0s")
    );
    let setup = Setup::one(&script);
    let plugins = setup.open();
    let (one, two) = tokio::join!(
        ask(&plugins, "a.example.io/1"),
        ask(&plugins, "b.example.io/2")
    );
    assert_eq!((one, two), (user("me"), user("me")));
}

#[tokio::test]
async fn a_plugin_goes_on_when_its_caller_gives_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let go = folder.path().join("go");
    let script = format!(
        "while ! [ -e {} ]; do sleep 0.01; done\n{}",
        go.display(),
        says("me", "Image", "1h")
    );
    let setup = Setup::one(&script);
    let plugins = setup.open();
    for _ in 0..2 {
        let asked = ask(&plugins, "a.example.io/x");
        let gone = tokio::time::timeout(Duration::from_millis(50), asked);
        gone.await.expect_err("it does not answer yet");
    }
    let asked = ask(&plugins, "a.example.io/x");
    std::fs::write(&go, "").expect("let it answer");
    assert_eq!(asked.await, user("me"));
    assert_eq!(setup.runs("p"), 1);
}

#[tokio::test]
async fn a_plugin_that_fails_is_left_out() {
    for script in ["exit 1", "echo hunter2", "kill -9 $$", ":"] {
        let setup = Setup::new(&[("a.yaml", config(&["missing", "bad", "good"]))]);
        setup.plugin("bad", script);
        setup.plugin("good", &says("me", "Image", "0s"));
        let plugins = setup.open();
        for _ in 0..2 {
            assert_eq!(
                ask(&plugins, "a.example.io/x").await,
                user("me"),
                "{script}"
            );
        }
        assert_eq!(setup.runs("bad"), 1, "it is not asked again at once");
        assert_eq!(setup.runs("good"), 2);
    }
}

#[tokio::test]
async fn a_refused_answer_is_asked_for_anew_once_it_is_old() {
    let setup = Setup::one(&says("first", "Registry", "12h"));
    let plugins = setup.open();
    let image = ImageRef::parse("a.example.io/x").expect("a name");
    assert_eq!(plugins.get(image.host(), &image).await, user("first"));
    setup.plugin("p", &says("second", "Registry", "12h"));
    plugins.refused(image.host(), &image);
    assert_eq!(plugins.get(image.host(), &image).await, user("first"));
    tokio::time::pause();
    tokio::time::advance(FRESH).await;
    tokio::time::resume();
    plugins.refused(image.host(), &image);
    assert_eq!(plugins.get(image.host(), &image).await, user("second"));
}

#[tokio::test]
async fn a_directory_is_read_in_the_order_of_its_names_and_again_when_it_changes() {
    let setup = Setup::new(&[
        ("b.yml", config(&["second"])),
        ("a.json", "{".to_owned()),
        ("a.txt", config(&["never"])),
    ]);
    for name in ["first", "second", "never"] {
        setup.plugin(name, &says(name, "Image", "0s"));
    }
    let plugins = setup.open();
    assert_eq!(ask(&plugins, "a.example.io/x").await, user("second"));
    setup.configure("a.json", &config(&["first"]));
    assert_eq!(ask(&plugins, "a.example.io/x").await, user("first"));
    std::fs::remove_dir_all(setup.folder.path().join("config")).expect("remove");
    assert_eq!(ask(&plugins, "a.example.io/x").await, user("first"));
}

#[test]
fn an_image_is_named_as_the_kubelet_names_it() {
    for (host, image, expected) in [
        ("registry-1.docker.io", "nginx:1", "docker.io/library/nginx"),
        ("r.io:5000", "r.io:5000/a/b:1", "r.io:5000/a/b"),
        ("mirror.io", "r.io/a/b:1", "mirror.io/a/b"),
    ] {
        let image = ImageRef::parse(image).expect("a name");
        assert_eq!(name_of(host, &image), expected);
    }
}
