//! Arguments and values with the semantics of Go's libraries.

use std::ffi::OsStr;
use std::time::Duration;

use clap::builder::{PossibleValue, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, Command};

/// A flag that is true if present, and takes a value only after `=`.
#[must_use]
pub fn switch(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Set)
        .num_args(0..=1)
        .require_equals(true)
        .value_name("BOOL")
        .default_value("false")
        .default_missing_value("true")
        .hide_default_value(true)
        .value_parser(parse_bool)
}

/// A flag with a text value; the last one wins.
#[must_use]
pub fn text(name: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::Set)
}

/// A flag that may be repeated. Its values are split at commas and trimmed.
#[must_use]
pub fn list(name: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .action(ArgAction::Append)
        .value_delimiter(',')
        .value_parser(ValueParser::new(trimmed()))
}

/// Parser of the values of a [`list`].
#[must_use]
pub fn trimmed() -> impl TypedValueParser<Value = String> {
    clap::builder::StringValueParser::new().map(|value| value.trim().to_owned())
}

/// Parser of a 64-bit integer ([`parse_integer`]) for [`Arg::value_parser`].
#[must_use]
pub fn integer() -> ValueParser {
    ValueParser::new(parse_integer)
}

/// Parser of a non-negative integer in the syntax of [`integer`], for [`Arg::value_parser`].
#[must_use]
pub fn unsigned() -> ValueParser {
    ValueParser::new(parse_unsigned)
}

/// Parser of a duration ([`parse_duration`]) for [`Arg::value_parser`]. The value is a
/// [`Duration`]; negative durations become zero.
#[must_use]
pub fn duration() -> ValueParser {
    ValueParser::new(|text: &str| {
        let nanoseconds = parse_duration(text)?;
        Ok::<_, String>(Duration::from_nanos(
            u64::try_from(nanoseconds).unwrap_or(0),
        ))
    })
}

/// The parser `inner` with a list of known values for help and completions. Only `inner` decides
/// which values are valid.
pub fn known<P: TypedValueParser>(
    words: &'static [&'static str],
    inner: P,
) -> impl TypedValueParser<Value = P::Value> {
    Known { words, inner }
}

#[derive(Debug, Clone)]
struct Known<P> {
    words: &'static [&'static str],
    inner: P,
}

impl<P: TypedValueParser> TypedValueParser for Known<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        self.inner.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.words.iter().copied();
        Some(Box::new(words.map(PossibleValue::new)))
    }
}

/// A boolean in the spellings that Go accepts.
pub fn parse_bool(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("parse error"),
    }
}

/// Why a text is not a 64-bit integer, in the words of Go's `strconv`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("strconv.{parser}: parsing {text:?}: {cause}")]
pub struct IntegerError {
    parser: &'static str,
    text: String,
    cause: &'static str,
}

const SYNTAX: &str = "invalid syntax";
const RANGE: &str = "value out of range";

/// Parses an integer as a Go literal: a sign, a prefix `0x`, `0o`, `0b` or `0` (octal), and
/// underscores between digits.
pub fn parse_integer(text: &str) -> Result<i64, IntegerError> {
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let signed = magnitude(digits).and_then(|value| {
        let signed = if negative {
            0_i64.checked_sub_unsigned(value)
        } else {
            i64::try_from(value).ok()
        };
        signed.ok_or(RANGE)
    });
    signed.map_err(|cause| IntegerError {
        parser: "ParseInt",
        text: text.to_owned(),
        cause,
    })
}

/// Like [`parse_integer`], without a sign.
pub fn parse_unsigned(text: &str) -> Result<u64, IntegerError> {
    magnitude(text).map_err(|cause| IntegerError {
        parser: "ParseUint",
        text: text.to_owned(),
        cause,
    })
}

/// The value of a literal without a sign.
fn magnitude(text: &str) -> Result<u64, &'static str> {
    let lower = text.to_ascii_lowercase();
    let (base, digits, prefixed) = if let Some(digits) = lower.strip_prefix("0x") {
        (16, digits, true)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (8, digits, true)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (2, digits, true)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..], true)
    } else {
        (10, lower.as_str(), false)
    };
    // An underscore may only separate two digits, or the prefix and a digit.
    let mut may_separate = prefixed;
    let mut value: Option<u64> = Some(0);
    for character in digits.chars() {
        if character == '_' {
            if !may_separate {
                return Err(SYNTAX);
            }
            may_separate = false;
            continue;
        }
        let digit = character.to_digit(base).ok_or(SYNTAX)?;
        may_separate = true;
        value = value
            .and_then(|value| value.checked_mul(u64::from(base)))
            .and_then(|value| value.checked_add(u64::from(digit)));
    }
    if digits.is_empty() || digits.ends_with('_') {
        return Err(SYNTAX);
    }
    value.ok_or(RANGE)
}

/// Parses a duration as Go writes it (`1h2m3.5s`, `300ms`; the unit is required except for zero).
/// The result is in nanoseconds.
pub fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {text:?}");
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.')
                .len();
        let (digits, behind) = rest.split_at(number);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(invalid());
        }
        let unit_length = behind
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(behind.len());
        let (unit, next) = behind.split_at(unit_length);
        let scale = match unit {
            "" => return Err(format!("time: missing unit in duration {text:?}")),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(format!("time: unknown unit {unit:?} in duration {text:?}")),
        };
        total = scaled(whole, fraction, scale)
            .and_then(|part| total.checked_add(part))
            .ok_or_else(invalid)?;
        rest = next;
    }
    let signed = if negative {
        0_i64.checked_sub_unsigned(total)
    } else {
        i64::try_from(total).ok()
    };
    signed.ok_or_else(invalid)
}

/// `whole.fraction` times `scale`, rounded down.
fn scaled(whole: &str, fraction: &str, scale: u64) -> Option<u64> {
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    // Further digits cannot change the result: it has at most the precision of nanoseconds in an
    // hour.
    let (mut part, mut denominator) = (0_u128, 1_u128);
    for digit in fraction.bytes().take(18) {
        part = part * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    let part = part * u128::from(scale) / denominator;
    whole
        .checked_mul(scale)?
        .checked_add(u64::try_from(part).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_are_go_literals() {
        for (text, value) in [
            ("0", 0),
            ("-1", -1),
            ("+7", 7),
            ("4194304", 4_194_304),
            ("4_194_304", 4_194_304),
            ("0x40_0000", 0x40_0000),
            ("0X_fF", 255),
            ("0o17", 15),
            ("017", 15),
            ("0_17", 15),
            ("0b101", 5),
            ("-9223372036854775808", i64::MIN),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(parse_integer(text), Ok(value), "{text}");
        }
        for text in [
            "", "-", "x", "1k", "1_", "_1", "1__0", "0x", "0x_", "08", "1.5", " 1", "--1", "0b2",
        ] {
            assert_eq!(parse_integer(text).unwrap_err().cause, SYNTAX, "{text}");
        }
        for text in [
            "9223372036854775808",
            "-9223372036854775809",
            "99999999999999999999999",
        ] {
            assert_eq!(parse_integer(text).unwrap_err().cause, RANGE, "{text}");
        }
        assert_eq!(
            parse_integer("x").unwrap_err().to_string(),
            "strconv.ParseInt: parsing \"x\": invalid syntax"
        );
        assert_eq!(parse_unsigned("0b1_1"), Ok(3));
        assert_eq!(
            parse_unsigned("-1").unwrap_err().to_string(),
            "strconv.ParseUint: parsing \"-1\": invalid syntax"
        );
    }

    #[test]
    fn durations_have_units() {
        for (text, nanoseconds) in [
            ("0", 0),
            ("0s", 0),
            ("5s", 5_000_000_000),
            ("1h2m3s", 3_723_000_000_000),
            ("1.5s", 1_500_000_000),
            (".5m", 30_000_000_000),
            ("1.s", 1_000_000_000),
            ("300ms", 300_000_000),
            ("1us2µs3μs4ns", 6_004),
            ("-5s", -5_000_000_000),
            ("0.000000001s", 1),
            ("0.333333333333333333333h", 1_199_999_999_999),
        ] {
            assert_eq!(parse_duration(text), Ok(nanoseconds), "{text}");
        }
        for (text, message) in [
            ("5", "time: missing unit in duration \"5\""),
            ("", "time: invalid duration \"\""),
            ("s", "time: invalid duration \"s\""),
            ("1.2.3s", "time: invalid duration \"1.2.3s\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("9999999999h", "time: invalid duration \"9999999999h\""),
        ] {
            assert_eq!(parse_duration(text), Err(message.to_owned()));
        }
    }

    #[test]
    fn booleans_have_gos_spellings() {
        assert_eq!(parse_bool("T"), Ok(true));
        assert_eq!(parse_bool("False"), Ok(false));
        assert_eq!(parse_bool("yes"), Err("parse error"));
    }
}
