//! The name of a unit of work, and the names on the server that are derived from it.
//!
//! A key that is not UTF-8 gets second names in ASCII, in the same slot, because the client library
//! reads channel names as text. In a database n > 0, the channel (not the queue) has the suffix
//! `:n`, because channels are the same in all databases of a server (`store/redis.rs`).

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use bytes_utils::Str;

/// The name of one unit of work: from 1 to [`Key::MAX_LEN`] bytes of any value.
///
/// On the server, the record has exactly this name. A second name, `{key}:line`, is derived from
/// it. The queue has that name, and so has the key's channel. The braces are a Redis Cluster [hash
/// tag], which keeps both names in one slot. A key with a hash tag of its own (`jobs:{7}`) keeps
/// it: its second name is `jobs:{7}::line`. Do not use a derived name as a key: as soon as a waiter
/// queues for `7`, the server refuses the key `{7}:line`.
///
/// Cloning is cheap.
///
/// [hash tag]: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
///
/// # Examples
///
/// ```
/// use redis_locking_worker::{Key, KeyError};
///
/// assert_eq!(Key::new("nightly-report")?.to_string(), "nightly-report");
/// assert!(matches!(Key::new(""), Err(KeyError::Empty)));
/// assert!(matches!(Key::new("a}b"), Err(KeyError::NotColocatable { .. })));
/// # Ok::<(), KeyError>(())
/// ```
#[derive(Clone)]
pub struct Key(Arc<Names>);

struct Names {
    key: Bytes,
    /// The name of the queue and of the channel. It is text because the client library reads
    /// channel names as text.
    line: Str,
    slot: u16,
}

impl Key {
    /// The maximum length of a key, in bytes.
    pub const MAX_LEN: usize = 65_535;

    /// Checks a name and makes a key of it.
    ///
    /// # Errors
    ///
    /// Returns a [`KeyError`] if the name is empty, is longer than [`Key::MAX_LEN`], or contains
    /// `}` without a hash tag of its own. No derived name could share the slot of such a name in a
    /// cluster.
    pub fn new(key: impl AsRef<[u8]>) -> Result<Self, KeyError> {
        let key = key.as_ref();
        if key.is_empty() {
            return Err(KeyError::Empty);
        }
        if key.len() > Self::MAX_LEN {
            return Err(KeyError::TooLong {
                len: key.len(),
                max: Self::MAX_LEN,
            });
        }
        let tagged = hash_tag(key).is_some();
        if !tagged && key.contains(&b'}') {
            return Err(KeyError::NotColocatable { key: show(key) });
        }
        let slot = slot_of(key);
        // No two keys share a derived name. The key `{7}` is not the queue of `7`, and the derived
        // name of a UTF-8 key never equals that of a key of other bytes.
        let (line, at) = match std::str::from_utf8(key) {
            Ok(key) if tagged => ([key, "::line"].concat(), Some(0)),
            Ok(key) => (["{", key, "}:line"].concat(), Some(1)),
            Err(_) => (
                format!("{{{}}}:{}:bytes", tag_of(slot), key.escape_ascii()),
                None,
            ),
        };
        let line = Str::from(line);
        let key = match at {
            Some(at) => line.inner().slice(at..at + key.len()),
            None => Bytes::copy_from_slice(key),
        };
        Ok(Self(Arc::new(Names { key, line, slot })))
    }

    /// Returns the key's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.key
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.0.key
    }

    /// Returns the name of the queue, which is also the name of the channel of the key's
    /// transitions. Each key has a queue of its own.
    pub(crate) fn line(&self) -> &Str {
        &self.0.line
    }

    pub(crate) fn slot(&self) -> u16 {
        self.0.slot
    }

    /// Returns the names that this key uses on the server: the record's, then that of the queue and
    /// the channel.
    #[doc(hidden)]
    pub fn server_names(&self) -> [&[u8]; 2] {
        [&self.0.key, self.0.line.as_bytes()]
    }
}

/// Returns the part of this key that Redis Cluster hashes, if it is not the whole.
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|b| *b == b'{')?;
    let rest = &key[open + 1..];
    let close = rest.iter().position(|b| *b == b'}')?;
    (close > 0).then_some(&rest[..close])
}

/// Returns the slot of a name in a cluster: CRC16 of its hash tag, or of the whole name without
/// one, as the [specification] says.
///
/// [specification]: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
pub(crate) fn slot_of(name: &[u8]) -> u16 {
    let hashed = hash_tag(name).unwrap_or(name);
    crc16::State::<crc16::XMODEM>::calculate(hashed) % 16_384
}

/// Returns a short text in the given slot: the first decimal number that hashes there. It takes
/// about 16,384 tries on average, and only keys that are not UTF-8 need it.
fn tag_of(slot: u16) -> String {
    (0u64..)
        .map(|n| n.to_string())
        .find(|tag| slot_of(tag.as_bytes()) == slot)
        .expect("CRC16 of the decimal numbers reaches each of the 16,384 slots")
}

/// Returns the bytes for display: UTF-8 text as it is, other bytes escaped.
pub(super) fn show(key: &[u8]) -> String {
    match std::str::from_utf8(key) {
        Ok(text) => text.to_owned(),
        Err(_) => key.escape_ascii().to_string(),
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show(&self.0.key))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", show(&self.0.key))
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.key.hash(state);
    }
}

/// Rejection of a name that cannot be a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The key has no bytes.
    #[error("the key is empty; it needs at least 1 byte")]
    Empty,
    /// The key is longer than [`Key::MAX_LEN`].
    #[error("the key has {len} bytes; at most {max} are allowed")]
    TooLong {
        /// Length of the key in bytes.
        len: usize,
        /// Maximum length in bytes.
        max: usize,
    },
    /// The key contains `}` but no hash tag, so its side keys could not share its cluster slot.
    #[error(
        "the key {key:?} contains `}}` without a hash tag like `{{tag}}` of its own, so its side \
         keys could not share its cluster slot"
    )]
    NotColocatable {
        /// The key.
        key: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_text_in_the_slot_of_its_key() {
        let key = Key::new([0xff, 0xfe, b'x']).unwrap();
        assert_eq!(slot_of(key.line().as_bytes()), key.slot());
        assert!(key.line().ends_with(r":\xff\xfex:bytes"));
    }

    #[test]
    fn no_two_keys_share_a_line() {
        let line = |key: &[u8]| Key::new(key).unwrap().line().clone();
        let bytes = Key::new(b"\xff:").unwrap();
        let text = bytes.line().strip_suffix(":bytes").unwrap().to_owned();
        let keys = [
            b"7",
            &b"{7}"[..],
            b"{7}:",
            b"{7}:line",
            text.as_bytes(),
            bytes.as_bytes(),
        ];
        let lines: std::collections::HashSet<_> = keys.into_iter().map(line).collect();
        assert_eq!(lines.len(), keys.len(), "{lines:?}");
    }
}
