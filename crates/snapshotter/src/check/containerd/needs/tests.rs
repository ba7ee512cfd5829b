//! Configurations as they are found on nodes.

use super::super::setting::text as lines;
use super::*;

const ROOT: &str = "/var/lib/soci-snapshotter-grpc";
const SOCKET: &str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock";

/// As containerd 1.7 writes its defaults, as far as it matters.
const DEFAULT_1_7: &str = r#"
version = 2
imports = []
disabled_plugins = []
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.8"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    disable_snapshot_annotations = true
    discard_unpacked_layers = false
    snapshotter = "overlayfs"
[plugins."io.containerd.transfer.v1.local"]
  max_concurrent_downloads = 3
  [[plugins."io.containerd.transfer.v1.local".unpack_config]]
    platform = "linux/amd64"
    snapshotter = "overlayfs"
[proxy_plugins]
"#;

/// As containerd 2.1 writes its defaults, as far as it matters.
const DEFAULT_2_1: &str = r#"
version = 3
imports = []
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  disable_snapshot_annotations = true
  use_local_image_pull = false
[plugins.'io.containerd.transfer.v1.local']
  max_concurrent_downloads = 3
"#;

/// What nodeadm writes on AL2023 with `FastImagePull`.
const NODEADM: &str = r#"
version = 3
root = "/var/lib/containerd"
imports = ["/etc/containerd/config.d/*.toml"]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins.'io.containerd.cri.v1.images']
discard_unpacked_layers = true
snapshotter = "soci"
disable_snapshot_annotations = false
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/kubernetes/pause"
[proxy_plugins.soci]
type = "snapshot"
address = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
[proxy_plugins.soci.exports]
root = "/var/lib/soci-snapshotter-grpc"
"#;

/// What Bottlerocket renders for containerd 1.7, with its own state directory.
const BOTTLEROCKET: &str = r#"
version = 2
root = "/var/lib/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs"]
[plugins."io.containerd.grpc.v1.cri"]
device_ownership_from_security_context = false
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "shimpei"
snapshotter = "soci"
disable_snapshot_annotations = false
[proxy_plugins.soci]
type = "snapshot"
address = "/run/soci-snapshotter/soci-snapshotter.sock"
[proxy_plugins.soci.exports]
root = "/var/lib/soci-snapshotter"
"#;

/// The lines of the README, for containerd 2.1 with its transfer service.
const README: &str = include_str!("../../../../../../README.md");

fn wanted() -> Wanted {
    Wanted {
        address: SOCKET.to_owned(),
        root: ROOT.to_owned(),
        kubelet: true,
    }
}

fn parsed(text: &str) -> (i64, Table) {
    let table: Table = text.parse().unwrap();
    (table["version"].as_integer().unwrap(), table)
}

fn levels(text: &str, wanted: &Wanted) -> Vec<Level> {
    let (version, table) = parsed(text);
    let found = findings(version, &table, wanted);
    found.iter().map(|finding| finding.level).collect()
}

/// Adds all missing settings.
fn fixed(text: &str) -> (i64, Table) {
    let (version, mut table) = parsed(text);
    for finding in findings(version, &table.clone(), &wanted()) {
        for setting in finding.missing {
            setting.apply(&mut table);
        }
    }
    (version, table)
}

#[test]
fn the_defaults_lack_everything() {
    use Level::{Problem, Warning};
    assert_eq!(levels(DEFAULT_1_7, &wanted()), [Problem, Problem]);
    assert_eq!(levels(DEFAULT_2_1, &wanted()), [Problem, Problem, Warning]);
    let alone = Wanted {
        kubelet: false,
        ..wanted()
    };
    assert_eq!(levels(DEFAULT_1_7, &alone), [Problem, Warning]);
}

#[test]
fn the_missing_lines_are_exact() {
    let (version, table) = parsed(DEFAULT_1_7);
    let found = findings(version, &table, &wanted());
    assert_eq!(
        lines(&found[0].missing),
        format!(
            "[proxy_plugins.soci]\n  type = \"snapshot\"\n  address = \"{SOCKET}\"\n  capabilities = [\"remap-ids\"]\n\
             [proxy_plugins.soci.exports]\n  root = \"{ROOT}\""
        )
    );
    assert_eq!(
        lines(&found[1].missing),
        "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"soci\"\n  \
         disable_snapshot_annotations = false"
    );
    let (version, table) = parsed(DEFAULT_2_1);
    let found = findings(version, &table, &wanted());
    assert_eq!(
        lines(&found[2].missing),
        "[proxy_plugins.soci.exports]\n  enable_remote_snapshot_annotations = \"true\"\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n  \
         snapshotter = \"overlayfs\"\n\
         [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n  \
         snapshotter = \"soci\""
    );
}

#[test]
fn adding_the_missing_lines_is_enough() {
    for text in [DEFAULT_1_7, DEFAULT_2_1, NODEADM] {
        let (version, table) = fixed(text);
        for finding in findings(version, &table, &wanted()) {
            assert_eq!(finding.level, Level::Ok, "{finding:?}");
        }
    }
    let (_, table) = fixed(DEFAULT_2_1);
    let cri = &table["plugins"]["io.containerd.cri.v1.images"];
    assert_eq!(cri["use_local_image_pull"].as_bool(), Some(false), "kept");
}

#[test]
fn a_node_of_al2023_is_ready_for_pods() {
    use Level::{Ok, Warning};
    assert_eq!(levels(NODEADM, &wanted()), [Ok, Ok, Warning]);
}

#[test]
fn a_node_of_bottlerocket_is_ready_with_its_own_paths() {
    use Level::{Ok, Problem};
    let own = Wanted {
        address: "/run/soci-snapshotter/soci-snapshotter.sock".to_owned(),
        root: "/var/lib/soci-snapshotter".to_owned(),
        kubelet: true,
    };
    assert_eq!(levels(BOTTLEROCKET, &own), [Ok, Ok]);
    assert_eq!(levels(BOTTLEROCKET, &wanted()), [Problem, Ok]);
}

#[test]
fn the_configuration_of_the_readme_is_ready() {
    let block = README.split("   ```toml\n").nth(1).unwrap();
    let block = block.split("   ```").next().unwrap();
    let cri = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'soci'\n";
    let text = format!("{block}{cri}");
    assert_eq!(levels(&text, &wanted()), [Level::Ok; 3]);
    // A CRI that pulls by itself needs the labels from itself.
    let local = format!("{text}use_local_image_pull = true\n");
    assert_eq!(levels(&local, &wanted())[1], Level::Problem);
}

#[test]
fn a_state_directory_that_the_kubelet_does_not_see_is_a_warning() {
    let elsewhere = NODEADM.replace("root = \"/var/lib/soci", "root = \"/mnt/soci");
    assert_eq!(levels(&elsewhere, &wanted())[0], Level::Warning);
    let slash = NODEADM.replace("soci-snapshotter-grpc\"\n\"", "soci-snapshotter-grpc/\"\n");
    assert_eq!(levels(&slash, &wanted())[0], Level::Ok);
}

#[test]
fn a_machine_without_the_cri_needs_no_settings_for_pods() {
    let off = DEFAULT_2_1.replace(
        "imports = []",
        "disabled_plugins = ['io.containerd.cri.v1.images']",
    );
    assert_eq!(levels(&off, &wanted())[1], Level::Ok);
}
