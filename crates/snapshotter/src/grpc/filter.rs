//! containerd's filter language for `List`.
//!
//! A filter is a comma-separated list of selectors that must all match. Several filters match if
//! one of them does. A selector is a field path, optionally with an operator and a value:
//!
//! ```text
//! selector  := fieldpath [ operator value ]
//! fieldpath := field ( "." field )*
//! field     := quoted | [A-Za-z0-9_-]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | anything up to a comma or white space
//! quoted    := "…" with Go's escapes; after ~= also /…/ and |…|
//! ```
//!
//! A missing field is an empty string, except for `==` and presence. As in containerd, a regular
//! expression that does not compile matches nothing.

use regex::{Regex, RegexBuilder};

/// Size limit of a compiled regular expression in bytes, because filters come from clients.
const REGEX_SIZE_LIMIT: usize = 1 << 20;

/// The fields of an object that filters examine.
pub(crate) trait Fields {
    /// The value at `path`, or `None` if the object has no such field.
    fn field(&self, path: &[String]) -> Option<&str>;
}

/// Why a filter was rejected: the text, the byte offset in it, and the reason.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("filters: parse error: {}: {reason}", mark(input, *at))]
pub(crate) struct FilterError {
    input: String,
    at: usize,
    reason: &'static str,
}

/// Marks the position in `input` where the parser stopped, in containerd's format.
fn mark(input: &str, at: usize) -> String {
    let Some(found) = input.get(at..).and_then(|rest| rest.chars().next()) else {
        return format!("[{input}]");
    };
    let (before, after) = (&input[..at], &input[at + found.len_utf8()..]);
    format!("[{before} >|{found}|< {after}]")
}

/// A set of filters that matches if any of them does. An empty set matches everything.
#[derive(Debug)]
pub(crate) struct Filters(Vec<Vec<Selector>>);

impl Filters {
    pub(crate) fn parse<S: AsRef<str>>(filters: &[S]) -> Result<Self, FilterError> {
        filters
            .iter()
            .map(|text| Parser::new(text.as_ref()).selectors())
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub(crate) fn matches(&self, object: &impl Fields) -> bool {
        self.0.is_empty()
            || self
                .0
                .iter()
                .any(|all| all.iter().all(|selector| selector.matches(object)))
    }
}

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// `None` for an expression that does not compile, which matches nothing.
    Matches(Option<Regex>),
}

impl Selector {
    fn matches(&self, object: &impl Fields) -> bool {
        let found = object.field(&self.path);
        let value = found.unwrap_or_default();
        match &self.test {
            Test::Present => found.is_some(),
            Test::Equal(wanted) => found == Some(wanted),
            Test::NotEqual(unwanted) => value != unwanted,
            Test::Matches(regex) => regex.as_ref().is_some_and(|regex| regex.is_match(value)),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Matches,
}

struct Parser<'a> {
    input: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn new(input: &'a str) -> Self {
        Self { input, at: 0 }
    }

    fn refuse<T>(&self, at: usize, reason: &'static str) -> Result<T, FilterError> {
        Err(FilterError {
            input: self.input.to_owned(),
            at,
            reason,
        })
    }

    fn peek(&self) -> Option<char> {
        self.input[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let found = self.peek()?;
        self.at += found.len_utf8();
        Some(found)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
        &self.input[start..self.at]
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    /// Parses the whole text. An empty text selects everything.
    fn selectors(mut self) -> Result<Vec<Selector>, FilterError> {
        if self.input.is_empty() {
            return Ok(Vec::new());
        }
        let mut all = vec![self.selector()?];
        loop {
            match self.peek() {
                None => return Ok(all),
                Some(',') => {
                    self.next();
                    all.push(self.selector()?);
                }
                Some(_) => return self.refuse(self.at, "unexpected input"),
            }
        }
    }

    fn selector(&mut self) -> Result<Selector, FilterError> {
        let mut path = vec![self.field()?];
        while self.peek() == Some('.') {
            self.next();
            path.push(self.field()?);
        }
        if matches!(self.peek(), None | Some(',')) {
            return Ok(Selector {
                path,
                test: Test::Present,
            });
        }
        let operator = self.operator()?;
        let value = self.value(operator)?;
        let test = match operator {
            Operator::Equal => Test::Equal(value),
            Operator::NotEqual => Test::NotEqual(value),
            Operator::Matches => Test::Matches(compile(&value)),
        };
        Ok(Selector { path, test })
    }

    fn field(&mut self) -> Result<String, FilterError> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') => {
                let at = self.at;
                self.quoted()?;
                self.refuse(at, "invalid quote encountered")
            }
            Some(found) if is_field(found) => Ok(self.take_while(is_field).to_owned()),
            _ => self.refuse(self.at, "expected field or quoted"),
        }
    }

    fn operator(&mut self) -> Result<Operator, FilterError> {
        self.skip_space();
        let at = self.at;
        match self.take_while(|found| matches!(found, '=' | '!' | '~')) {
            "==" => Ok(Operator::Equal),
            "!=" => Ok(Operator::NotEqual),
            "~=" => Ok(Operator::Matches),
            "" => self.refuse(at, "expected an operator (\"==\"|\"!=\"|\"~=\")"),
            _ => self.refuse(at, "unsupported operator"),
        }
    }

    fn value(&mut self, operator: Operator) -> Result<String, FilterError> {
        self.skip_space();
        let at = self.at;
        match self.peek() {
            Some('"') => self.quoted(),
            Some('/' | '|') => {
                let value = self.quoted()?;
                if operator == Operator::Matches {
                    Ok(value)
                } else {
                    self.refuse(at, "invalid quote encountered")
                }
            }
            None | Some(',' | '.' | '=' | '!' | '~') => self.refuse(at, "expected value or quoted"),
            Some(_) => match self.take_while(is_value) {
                "" => self.refuse(at, "expected value or quoted"),
                value => Ok(value.to_owned()),
            },
        }
    }

    /// Parses a quoted text; the parser is at its opening quote.
    fn quoted(&mut self) -> Result<String, FilterError> {
        let opening = self.at;
        let quote = self.next();
        // Bytes, because \x and octal escapes denote bytes. The result must be UTF-8.
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return self.refuse(opening, "quoted literal not terminated"),
                found if found == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(found) => bytes.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).or_else(|_| self.refuse(opening, "quoted literal is not UTF-8"))
    }

    /// Parses an escape in a quoted text; the parser is after the backslash.
    fn escape(&mut self, quote: Option<char>, bytes: &mut Vec<u8>) -> Result<(), FilterError> {
        let at = self.at;
        let plain = match self.next() {
            Some('a') => 0x07,
            Some('b') => 0x08,
            Some('f') => 0x0c,
            Some('n') => b'\n',
            Some('r') => b'\r',
            Some('t') => b'\t',
            Some('v') => 0x0b,
            Some('\\') => b'\\',
            Some('x') => {
                let code = self.digits(16, 2)?;
                u8::try_from(code).or_else(|_| self.refuse(at, "illegal escape sequence"))?
            }
            Some('u') => return self.code_point(at, 4, bytes),
            Some('U') => return self.code_point(at, 8, bytes),
            Some('0'..='7') => {
                self.at = at;
                let code = self.digits(8, 3)?;
                u8::try_from(code).or_else(|_| self.refuse(at, "illegal escape sequence"))?
            }
            Some(found @ ('"' | '/' | '|')) if Some(found) == quote => {
                // All quotes are ASCII.
                bytes.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return self.refuse(at, "illegal escape sequence"),
        };
        bytes.push(plain);
        Ok(())
    }

    fn code_point(
        &mut self,
        at: usize,
        digits: usize,
        bytes: &mut Vec<u8>,
    ) -> Result<(), FilterError> {
        let code = self.digits(16, digits)?;
        let Some(found) = char::from_u32(code) else {
            return self.refuse(at, "illegal escape sequence");
        };
        bytes.extend_from_slice(found.encode_utf8(&mut [0; 4]).as_bytes());
        Ok(())
    }

    fn digits(&mut self, base: u32, count: usize) -> Result<u32, FilterError> {
        let at = self.at;
        let mut value = 0_u32;
        for _ in 0..count {
            let Some(digit) = self.next().and_then(|found| found.to_digit(base)) else {
                return self.refuse(at, "illegal numeric escape sequence");
            };
            // At most eight digits of four bits, so this cannot overflow.
            value = value * base + digit;
        }
        Ok(value)
    }
}

fn is_field(found: char) -> bool {
    found.is_ascii_alphanumeric() || matches!(found, '_' | '-')
}

fn is_value(found: char) -> bool {
    found != ',' && !found.is_whitespace() && !found.is_control()
}

fn compile(expression: &str) -> Option<Regex> {
    RegexBuilder::new(expression)
        .size_limit(REGEX_SIZE_LIMIT)
        .build()
        .ok()
}

#[cfg(test)]
mod tests;
