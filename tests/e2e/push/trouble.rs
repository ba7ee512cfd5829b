//! Registries that return wrong data, refuse requests or fail temporarily.

use soci_registry::testing::{Fault, On, Referrers, Wrong};

use super::*;

/// One kind of trouble and the expected message.
struct Trouble {
    referrers: Referrers,
    on: On,
    wrong: Option<Wrong>,
    says: &'static str,
}

fn answer(code: u16, header: (&'static str, &str), body: &str) -> Option<Wrong> {
    Some(Wrong::Status {
        code,
        headers: vec![(header.0, header.1.to_owned())],
        body: body.to_owned(),
    })
}

fn troubles() -> Vec<Trouble> {
    let path = |part: &str| On::Path(part.to_owned());
    let denied = r#"{"errors":[{"code":"DENIED","message":"this repository is only read"}]}"#;
    vec![
        Trouble {
            referrers: Referrers::default(),
            on: On::Any,
            wrong: answer(200, ("content-type", "text/html"), "<html>Log in</html>"),
            says: "answered with a web page, as no registry does",
        },
        Trouble {
            referrers: Referrers::Endless,
            on: On::Any,
            wrong: None,
            says: "answered with more than 4194304 bytes",
        },
        Trouble {
            referrers: Referrers::Circle,
            on: On::Any,
            wrong: None,
            says: "is larger than 16777216 bytes",
        },
        Trouble {
            referrers: Referrers::default(),
            on: path("/uploads/"),
            wrong: answer(307, ("location", "/v2/app/blobs/uploads/"), ""),
            says: "more than 10 redirects",
        },
        Trouble {
            referrers: Referrers::default(),
            on: path("/uploads/"),
            wrong: answer(202, ("range", "0-0"), ""),
            says: "accepted an upload without saying where to",
        },
        Trouble {
            referrers: Referrers::default(),
            on: path("/uploads/upload-"),
            wrong: answer(403, ("content-type", "application/json"), denied),
            says: "answered 403: DENIED this repository is only read",
        },
        Trouble {
            referrers: Referrers::default(),
            on: path("/blobs/sha256:"),
            wrong: answer(200, ("docker-content-digest", &digest(b"other")), ""),
            says: "came with other bytes than its digest says",
        },
    ]
}

#[test]
fn a_failing_registry_is_named_and_gets_no_index() -> Result<()> {
    let bench = Bench::new()?;
    let first = "first.test/app:1";
    let layout = bench.import(&image(21)?, first)?;
    bench.create(first, "65536")?;
    for trouble in troubles() {
        let registry = TestRegistry::with(Setup {
            referrers: trouble.referrers.clone(),
            ..Setup::default()
        });
        let reference = name(&registry, "app:1");
        crane_push(&layout, &reference)?;
        bench
            .node
            .ctr(["images", "tag", first, &reference])?
            .succeed()?;
        if let Some(wrong) = trouble.wrong {
            registry.fault(Fault::always(trouble.on, wrong));
        }
        let pushed = bench.push(&[&reference])?;
        assert_eq!(pushed.code, Some(1), "{}: {pushed:?}", trouble.says);
        assert!(
            pushed.stderr.contains(trouble.says),
            "{}: {pushed:?}",
            trouble.says
        );
        assert!(pushed.stderr.contains(&registry.host()), "{pushed:?}");
        assert_eq!(pushed.stderr.lines().count(), 1, "{pushed:?}");
        let index = pushed
            .stdout
            .lines()
            .find_map(|line| line.strip_prefix("pushing soci index with digest: "));
        assert!(index.is_none_or(|index| registry.manifest("app", index).is_none()));
    }
    Ok(())
}

#[test]
fn requests_to_a_registry_that_fails_temporarily_are_repeated() -> Result<()> {
    let bench = Bench::new()?;
    let registry = TestRegistry::start();
    let reference = name(&registry, "app:1");
    let layout = bench.import(&image(22)?, &reference)?;
    crane_push(&layout, &reference)?;
    bench.create(&reference, "65536")?;
    for (part, wrong) in [
        ("/referrers/", Wrong::status(503)),
        ("/uploads/upload-", Wrong::Hangup),
        ("/uploads/?", Wrong::too_many("0")),
        ("/manifests/sha256:", Wrong::status(500)),
    ] {
        registry.fault(Fault::once(On::Path(part.to_owned()), wrong));
    }
    let printed = bench.pushed(&["--plain-http", &reference])?;
    check_lines(&printed, &[&manifest_of(&layout)?])?;
    Ok(())
}
