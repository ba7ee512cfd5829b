use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

struct Object {
    name: &'static str,
    other: &'static str,
    labels: BTreeMap<String, String>,
}

impl Fields for Object {
    fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => (!self.name.is_empty()).then_some(self.name),
            "other" => (!self.other.is_empty()).then_some(self.other),
            "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

fn object(name: &'static str, other: &'static str, labels: &[(&str, &str)]) -> Object {
    let labels = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Object {
        name,
        other,
        labels: labels.collect(),
    }
}

fn corpus() -> Vec<Object> {
    vec![
        object("foo", "", &[("foo", "true")]),
        object("bar", "", &[]),
        object(
            "foo",
            "",
            &[("foo", "present"), ("a longer label", "present")],
        ),
        object("bar", "", &[("bar", "true")]),
        object("fooer", "", &[(r#"with \ and ""#, "present")]),
        object("fooer", "", &[(r#"with \ and ".post"#, "present")]),
        object("baz", "too complex, yo", &[]),
        object("bazo", "abc", &[]),
        object("compound", "", &[("foo", "omg_asdf.asdf-qwer")]),
    ]
}

fn selected(filters: &[&str]) -> Vec<usize> {
    let filters = Filters::parse(filters).expect("the filter is in the language");
    let corpus = corpus();
    (0..corpus.len())
        .filter(|&i| filters.matches(&corpus[i]))
        .collect()
}

#[test]
fn filters_select_what_containerd_selects() {
    let all: Vec<usize> = (0..9).collect();
    let cases: &[(&[&str], &[usize])] = &[
        (&[], &all),
        (&[""], &all),
        (&["name"], &all),
        (&["labels.foo"], &[0, 2, 8]),
        (&["labels.foo,name"], &[0, 2, 8]),
        (&["labels.foo==true"], &[0]),
        (&["labels.foo==omg_asdf.asdf-qwer"], &[8]),
        (&["name==bar"], &[1, 3]),
        (&["name == bar"], &[1, 3]),
        (&["name!=bar"], &[0, 2, 4, 5, 6, 7, 8]),
        (&["name==bar,labels.bar"], &[3]),
        (&["name==bar,labels.bar==wrong"], &[]),
        (&["name==baz", "name==bazo"], &[6, 7]),
        (&[r#"other=="too complex, yo""#], &[6]),
        (&["other~=[abc]+,name!=foo"], &[6, 7]),
        (&["other~=/[abc]+/,name!=foo"], &[6, 7]),
        (&["other~=|[abc]{1,2}|,name!=foo"], &[6, 7]),
        (&[r#"other~=/[abc]{0,1}"\//,name!=foo"#], &[]),
        (&["other~=["], &[]),
        (&[r#"name==foo,labels."a longer label""#], &[2]),
        (&[r#"labels."with \\ and \""==present"#], &[4]),
        (&[r#"labels."with \\ and \"".post==present"#], &[5]),
        (&[r#"name=="\x62\141\u007a""#], &[6]),
        (&["nothing"], &[]),
        (&["nothing!=x,name==baz"], &[6]),
    ];
    for (filters, wanted) in cases {
        assert_eq!(&selected(filters), wanted, "{filters:?}");
    }
}

#[test]
fn refused_filters_say_where() {
    let cases = [
        (
            "labels.|foo|==x",
            "[labels. >|||< foo|==x]: invalid quote encountered",
        ),
        (
            r#"labels.?"a"==x"#,
            r#"[labels. >|?|< "a"==x]: expected field or quoted"#,
        ),
        ("name==foo,", "[name==foo,]: expected field or quoted"),
        ("labels.", "[labels.]: expected field or quoted"),
        (
            "image~=,id?=?fbaq",
            "[image~= >|,|< id?=?fbaq]: expected value or quoted",
        ),
        ("labels.ns/key==value", "[labels.ns >|/|< key==value]: "),
        (
            "labels.key==/value",
            "[labels.key== >|/|< value]: quoted literal not terminated",
        ),
        ("name=bar", "[name >|=|< bar]: unsupported operator"),
        (
            r#"name=="\q""#,
            r#"[name=="\ >|q|< "]: illegal escape sequence"#,
        ),
        (r#"name=="\ud800""#, "illegal escape sequence"),
        (r#"name=="\xff""#, "quoted literal is not UTF-8"),
        (r#"name=="\400""#, "illegal escape sequence"),
    ];
    for (input, wanted) in cases {
        let found = Filters::parse(&[input]).expect_err(input).to_string();
        assert!(found.starts_with("filters: parse error: ["), "{found}");
        assert!(found.contains(wanted), "{input}: {found}");
    }
}

proptest! {
    #[test]
    fn prop_any_text_is_parsed_or_refused(text in ".{0,40}") {
        drop(Filters::parse(&[text]));
    }

    #[test]
    fn prop_text_of_the_languages_own_signs_is_parsed_or_refused(
        text in r#"[a-c.,=!~"/|\\x0 é]{0,24}"#,
    ) {
        if let Ok(filters) = Filters::parse(&[text]) {
            for object in corpus() {
                filters.matches(&object);
            }
        }
    }

    #[test]
    fn prop_a_quoted_value_selects_exactly_itself(value in "[ -~]{0,12}") {
        let escaped = value.replace('\\', r"\\").replace('"', r#"\""#);
        let filters = Filters::parse(&[format!("labels.\"k\"==\"{escaped}\"")]).unwrap();
        prop_assert!(filters.matches(&object("", "", &[("k", &value)])));
        let longer = format!("{value}!");
        prop_assert!(!filters.matches(&object("", "", &[("k", &longer)])));
    }
}
