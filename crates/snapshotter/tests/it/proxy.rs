//! Proxies of the environment, with the real program.

use std::io::{Read, Write, copy};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::{fs, thread};

use rustix::process::Signal;
use soci_registry::testing::{Setup, TestRegistry};
use tonic::Code;

use crate::image::{Image, Shape, file, tar};
use crate::process::{Place, Running};
use crate::server::{connect, prepare_request};

/// A mirror that only a proxy can reach.
const MIRROR: &str = "mirror.example";

fn publish(registry: &TestRegistry) -> Image {
    Image::publish(registry, &[tar(&[file("a", b"one")])], Shape::default())
}

/// Starts a daemon with this environment and pulls the image. Returns whether it is mounted lazily.
fn pulls(place: &Place, image: &Image, environment: &[(&str, &str)]) -> bool {
    let mut command = place.command();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.envs(environment.iter().copied());
    let mut running = Running::start(command);
    let (socket, labels) = (place.path("s/s.sock"), image.labels(0));
    let prepared = async {
        let request = prepare_request("default", "extract", "", labels);
        connect(socket).await.prepare(request).await
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    let prepared = runtime.block_on(prepared);
    drop(runtime);
    running.end(Signal::INT);
    prepared.is_err_and(|status| status.code() == Code::AlreadyExists)
}

fn mirrored(registry: &TestRegistry, mirror: &str) -> Place {
    let host = registry.host();
    Place::with(&format!(
        "[[resolver.host.'{host}'.mirrors]]\nhost = '{mirror}'\ninsecure = true\n"
    ))
}

#[test]
fn requests_go_through_the_proxy_of_the_environment() {
    // A proxy gets the same requests as a registry, with the whole address in the first line.
    let (registry, proxy) = (TestRegistry::start(), TestRegistry::start());
    let image = publish(&registry);
    publish(&proxy);
    let address = format!("http://{}", proxy.host());
    registry.set_online(false);
    for name in ["HTTP_PROXY", "http_proxy"] {
        let place = mirrored(&registry, MIRROR);
        assert!(pulls(&place, &image, &[(name, &address)]), "{name}");
        let seen = proxy.seen();
        assert!(!seen.is_empty() && seen.iter().all(|seen| seen.host == MIRROR));
        proxy.forget_seen();
    }
    registry.set_online(true);
    for (name, excluded, mirror) in [
        ("NO_PROXY", "192.0.2.0/24", "192.0.2.1"),
        ("no_proxy", "other.test, .example", MIRROR),
    ] {
        let place = mirrored(&registry, mirror);
        let environment = [("HTTP_PROXY", address.as_str()), (name, excluded)];
        assert!(pulls(&place, &image, &environment), "{name}");
        assert_eq!(proxy.requests(), 0, "{name}: {:?}", proxy.seen());
    }
}

#[test]
fn registries_on_this_machine_are_asked_without_a_proxy() {
    let registry = TestRegistry::start();
    let image = publish(&registry);
    let nobody = "http://127.0.0.1:1";
    let environment = [("HTTP_PROXY", nobody), ("HTTPS_PROXY", nobody)];
    assert!(pulls(&Place::new(), &image, &environment));
}

/// A proxy for HTTPS that connects everyone to one address, until the end of the process.
struct Tunnel {
    address: SocketAddr,
    /// The first lines of the requests.
    asked: Receiver<String>,
}

impl Tunnel {
    fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = channel();
        thread::spawn(move || {
            for client in listener.incoming() {
                let (tell, client) = (tell.clone(), client.unwrap());
                thread::spawn(move || {
                    drop(tell.send(first_line(&client)));
                    relay(client, target);
                });
            }
        });
        Self { address, asked }
    }
}

/// Reads the head of a request.
fn first_line(mut client: &TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read_exact(&mut byte).is_ok() {
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8_lossy(&head);
    head.lines().next().unwrap_or_default().to_owned()
}

fn relay(mut client: TcpStream, target: SocketAddr) {
    let mut server = TcpStream::connect(target).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || copy(&mut from, &mut to));
    drop(copy(&mut server, &mut client));
}

#[test]
fn encrypted_requests_go_through_a_tunnel_of_the_proxy() {
    let secure = Setup {
        tls: true,
        ..Setup::default()
    };
    let (registry, mirror) = (TestRegistry::start(), TestRegistry::with(secure));
    let image = publish(&registry);
    publish(&mirror);
    registry.set_online(false);
    let tunnel = Tunnel::to(mirror.address());
    let address = format!("http://{}", tunnel.address);
    for name in ["HTTPS_PROXY", "https_proxy"] {
        let folder = tempfile::TempDir::new().unwrap();
        let own = folder.path().join("_default");
        fs::create_dir(&own).unwrap();
        let text = format!("[host.'https://{MIRROR}']\nskip_verify = true\n");
        fs::write(own.join("hosts.toml"), text).unwrap();
        let folder = folder.path().display();
        let place = Place::with(&format!("[registry]\nconfig_path = '{folder}'\n"));
        assert!(pulls(&place, &image, &[(name, &address)]), "{name}");
        let asked: Vec<_> = tunnel.asked.try_iter().collect();
        let connect = format!("CONNECT {MIRROR}:443 HTTP/1.1");
        assert!(!asked.is_empty() && asked.iter().all(|line| *line == connect));
    }
}
