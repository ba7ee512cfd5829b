//! Values in Go's binary formats.

/// Seconds from year 1, the origin of Go's times, to 1970.
const GO_EPOCH: i64 = 62_135_596_800;
/// Nanoseconds of a second.
const SECOND: u32 = 1_000_000_000;

/// Decodes `binary.PutUvarint`: seven bits per byte. Bytes that follow are ignored, as in Go.
#[must_use]
pub fn uvarint(bytes: &[u8]) -> Option<u64> {
    split_uvarint(bytes).map(|(number, _)| number)
}

/// Decodes a non-negative number of `binary.PutVarint`: zig-zag, seven bits per byte.
#[must_use]
pub fn varint(bytes: &[u8]) -> Option<u64> {
    let number = uvarint(bytes)?;
    (number & 1 == 0).then_some(number >> 1)
}

/// Decodes `binary.PutUvarint` and returns the bytes that follow.
#[must_use]
pub fn split_uvarint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * index);
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(index + 1..).unwrap_or_default()));
        }
    }
    None
}

/// Decodes `time.Time.MarshalBinary` to seconds since 1970 and nanoseconds. `Some(None)` is Go's
/// zero time. The time zone is ignored.
#[must_use]
pub fn time(bytes: &[u8]) -> Option<Option<(i64, u32)>> {
    let (version, rest) = bytes.split_first()?;
    let (seconds, rest) = rest.split_first_chunk()?;
    let (nanos, zone) = rest.split_first_chunk()?;
    // In version 2, the time zone offset includes seconds.
    if !matches!((version, zone.len()), (1, 2) | (2, 3)) {
        return None;
    }
    let (seconds, nanos) = (i64::from_be_bytes(*seconds), u32::from_be_bytes(*nanos));
    if nanos >= SECOND {
        return None;
    }
    if (seconds, nanos) == (0, 0) {
        return Some(None);
    }
    Some(Some((seconds.checked_sub(GO_EPOCH)?, nanos)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_writes_them() {
        assert_eq!(uvarint(&[0x96, 0x01]), Some(150));
        assert_eq!(uvarint(&[0xff; 9]), None);
        assert_eq!(
            uvarint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            Some(u64::MAX)
        );
        assert_eq!(
            uvarint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            None
        );
        assert_eq!(split_uvarint(&[7, 0, 9]), Some((7, &[0, 9][..])));
        assert_eq!(varint(&[0x96, 0x01]), Some(75));
        assert_eq!(varint(&[0x01]), None, "negative");
        assert_eq!(varint(&[]), None);
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        let written = |seconds: i64, nanos: u32| {
            let mut bytes = vec![1];
            bytes.extend((seconds + GO_EPOCH).to_be_bytes());
            bytes.extend(nanos.to_be_bytes());
            bytes.extend((-1_i16).to_be_bytes());
            bytes
        };
        assert_eq!(time(&written(-1, 5)), Some(Some((-1, 5))));
        assert_eq!(time(&written(-GO_EPOCH, 0)), Some(None));
        assert_eq!(time(&written(0, SECOND)), None);
        assert_eq!(time(&[1; 14]), None);
        assert_eq!(time(&[0xff; 15]), None);
    }
}
