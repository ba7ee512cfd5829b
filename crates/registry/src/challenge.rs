//! Parses `WWW-Authenticate`, the header with a registry's challenges.

/// One challenge: a scheme and its parameters. All names are lowercase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    params: Vec<(String, String)>,
}

impl Challenge {
    pub(crate) fn new(scheme: &str, params: &[(&str, &str)]) -> Challenge {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Challenge {
            scheme: scheme.to_owned(),
            params: params.iter().map(owned).collect(),
        }
    }

    /// Value of a parameter; the first one if the parameter is repeated.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Parses all challenges of a header value. Malformed text ends the list; the challenges before it
/// are kept.
pub(crate) fn parse(value: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = value;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let (word, after) = split_token(rest);
        if word.is_empty() {
            return challenges;
        }
        let name = word.to_ascii_lowercase();
        match after.trim_start().strip_prefix('=') {
            None => {
                challenges.push(Challenge {
                    scheme: name,
                    params: Vec::new(),
                });
                rest = after;
            }
            Some(after) => {
                let (Some(challenge), Some((value, after))) =
                    (challenges.last_mut(), split_value(after.trim_start()))
                else {
                    return challenges;
                };
                challenge.params.push((name, value));
                rest = after;
            }
        }
    }
}

fn split_token(text: &str) -> (&str, &str) {
    let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text.split_at(text.find(|c| !is_token(c)).unwrap_or(text.len()))
}

/// Parses a quoted string, unescaped, or an unquoted value up to the next comma or blank.
fn split_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_of_real_registries() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/x:pull,push""#;
        assert_eq!(
            parse(hub),
            [Challenge::new(
                "bearer",
                &[
                    ("realm", "https://auth.docker.io/token"),
                    ("service", "registry.docker.io"),
                    ("scope", "repository:library/x:pull,push"),
                ]
            )]
        );
        assert_eq!(
            parse(r#"Basic realm="https://1.dkr.ecr.us-east-1.amazonaws.com/",service="ecr.amazonaws.com""#)[0]
                .param("service"),
            Some("ecr.amazonaws.com")
        );
        assert_eq!(
            parse(r#"BASIC Realm = plain , Bearer realm="a \"b\"" error=invalid_token"#),
            [
                Challenge::new("basic", &[("realm", "plain")]),
                Challenge::new(
                    "bearer",
                    &[("realm", "a \"b\""), ("error", "invalid_token")]
                ),
            ]
        );
    }

    #[test]
    fn what_follows_no_grammar_is_left_out() {
        assert_eq!(parse(""), []);
        assert_eq!(parse("realm=\"x\""), []);
        assert_eq!(
            parse("Bearer realm=\"open"),
            [Challenge::new("bearer", &[])]
        );
        assert_eq!(parse("Basic \u{e9}"), [Challenge::new("basic", &[])]);
    }

    proptest! {
        #[test]
        fn prop_never_panics(value in "(\\PC|[\"=, \\\\]){0,60}") {
            for challenge in parse(&value) {
                prop_assert!(!challenge.scheme.is_empty());
            }
        }

        #[test]
        fn prop_any_value_survives_quoting(value in "\\PC{0,30}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let parsed = parse(&format!("Bearer realm=\"{quoted}\",service=s"));
            prop_assert_eq!(parsed, [Challenge::new("bearer", &[("realm", &value), ("service", "s")])]);
        }
    }
}
