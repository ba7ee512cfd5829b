//! How a table of the file is declared: once per key.
//!
//! [`table!`] makes a struct with its defaults from the declaration, and the description of every
//! key. Parsing, `0` as default, the warnings, `config dump` and `docs/config.md` use nothing else,
//! so they cannot disagree. A doc comment of a key is the text of the page.

/// What is known about a key besides its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its name in the file.
    pub(super) name: &'static str,
    /// The type of its value, for the page.
    pub(super) kind: &'static str,
    /// Lines of text about its meaning.
    pub(super) text: &'static [&'static str],
    /// Whether `0` or an empty string stands for the default.
    pub(super) zero: bool,
    /// Whether the key is ours, not the reference's.
    pub(super) ours: bool,
    /// Whether the key is accepted without effect.
    pub(super) unused: bool,
}

impl Key {
    pub(super) const fn new(
        name: &'static str,
        kind: &'static str,
        text: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            kind,
            text,
            zero: false,
            ours: false,
            unused: false,
        }
    }

    /// `0` or an empty string stands for the default.
    pub(super) const fn zero_is_default(mut self) -> Self {
        self.zero = true;
        self
    }

    /// The reference does not have this key.
    pub(super) const fn ours(mut self) -> Self {
        self.ours = true;
        self
    }

    /// The key is accepted, and nothing reads it.
    pub(super) const fn unused(mut self) -> Self {
        self.unused = true;
        self
    }

    /// Whether the value is a table or a list of tables, which have declarations of their own.
    pub(super) fn is_table(&self) -> bool {
        self.kind == TABLE
    }
}

/// The kind of values that are tables.
pub(super) const TABLE: &str = "table";

/// A type of values.
pub(super) trait Value {
    const KIND: &'static str;

    /// The value as the reference prints it. Empty for tables, and if it is not set.
    fn toml(&self) -> String;

    /// Whether the value stands for the default if the key says so.
    fn is_zero(&self) -> bool {
        false
    }
}

impl Value for bool {
    const KIND: &'static str = "boolean";

    fn toml(&self) -> String {
        self.to_string()
    }
}

/// A key that need not be set, where that differs from both values.
impl Value for Option<bool> {
    const KIND: &'static str = bool::KIND;

    fn toml(&self) -> String {
        self.map_or_else(String::new, |set| set.toml())
    }
}

impl Value for i64 {
    const KIND: &'static str = "integer";

    fn toml(&self) -> String {
        self.to_string()
    }

    fn is_zero(&self) -> bool {
        *self == 0
    }
}

impl Value for String {
    const KIND: &'static str = "string";

    fn toml(&self) -> String {
        quoted(self)
    }

    fn is_zero(&self) -> bool {
        self.is_empty()
    }
}

impl Value for Vec<String> {
    const KIND: &'static str = "list of strings";

    fn toml(&self) -> String {
        let texts: Vec<String> = self.iter().map(|text| quoted(text)).collect();
        format!("[{}]", texts.join(", "))
    }
}

/// A string in single quotes, or in double quotes with escapes if it cannot stand in single ones.
pub(super) fn quoted(text: &str) -> String {
    if !text.chars().any(|char| char == '\'' || char.is_control()) {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            char if char.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(char))),
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// A declared table.
pub(super) trait Declared {
    /// Lines of text about the table.
    const ABOUT: &'static [&'static str];
    /// The keys, in the order of the reference's file.
    const KEYS: &'static [Key];

    /// The values of the keys as they are printed.
    fn values(&self) -> Vec<String>;

    /// Replaces zeros that stand for the default.
    fn fill(&mut self);
}

/// Declares a table: `name: type = default, marks...;` per key, with its text as a doc comment. A
/// name in the file that is no identifier here follows `as`. Marks are the methods of [`Key`].
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        pub struct $table:ident {
            $(
                $(#[doc = $text:literal])+
                $field:ident $(as $name:literal)? : $kind:ty = $default:expr $(, $mark:ident)*;
            )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
        #[serde(default)]
        pub struct $table {
            $(
                $(#[doc = $text])+
                $(#[serde(rename = $name)])?
                pub $field: $kind,
            )+
        }

        impl Default for $table {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }

        impl $crate::config::declare::Declared for $table {
            const ABOUT: &'static [&'static str] = &[$($about),+];
            const KEYS: &'static [$crate::config::declare::Key] = &[$(
                $crate::config::declare::Key::new(
                    $crate::config::declare::name_of!($field $($name)?),
                    <$kind as $crate::config::declare::Value>::KIND,
                    &[$($text),+],
                )$(.$mark())*
            ),+];

            fn values(&self) -> Vec<String> {
                vec![$($crate::config::declare::Value::toml(&self.$field)),+]
            }

            fn fill(&mut self) {
                let default = Self::default();
                let mut keys = Self::KEYS.iter();
                $(
                    if keys.next().is_some_and(|key| key.zero)
                        && $crate::config::declare::Value::is_zero(&self.$field)
                    {
                        self.$field = default.$field;
                    }
                )+
            }
        }
    };
}

/// The name of a key in the file.
macro_rules! name_of {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:literal) => {
        $name
    };
}

/// Declares a value that is one of a few words.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        pub enum $words:ident {
            $( $(#[doc = $text:literal])+ $variant:ident = $word:literal, )+
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
        pub enum $words {
            $( $(#[doc = $text])+ #[serde(rename = $word)] $variant, )+
        }

        impl $crate::config::declare::Value for $words {
            const KIND: &'static str = concat!("one of" $(, " `", $word, "`")+);

            fn toml(&self) -> String {
                let word = match self { $(Self::$variant => $word,)+ };
                $crate::config::declare::quoted(word)
            }
        }
    };
}

pub(super) use {name_of, table, words};
