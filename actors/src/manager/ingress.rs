//! From bytes to requests: which verb, who asks, what.

use super::core::Request;
use schemas::{
    codec::{Encoding, decode_strict},
    error::{Refusal, code},
    id::{Seq, WorkId},
    subject::WORK_VERBS,
    time::Stamp,
    token::CallerName,
    work::check::nearest,
};

/// Takes `lh.work.<verb>[.<caller>]` apart; without a caller the owner speaks.
pub(crate) fn address(subject: &str) -> Result<(&str, CallerName), Refusal> {
    let mut tokens = subject.strip_prefix("lh.work.").unwrap_or_default().split('.');
    let verb = tokens.next().unwrap_or_default();
    let caller = match tokens.next() {
        None => CallerName::owner(),
        Some(name) => CallerName::new(name).map_err(|error| {
            Refusal::new(code::INVALID, format!("the caller {error}")).field("caller")
        })?,
    };
    Ok((verb, caller))
}

/// Reads a request, strictly.
pub(crate) fn request(verb: &str, encoding: Encoding, bytes: &[u8]) -> Result<Request, Refusal> {
    Ok(match verb {
        "submit" => Request::Submit(strict(encoding, bytes).map(Box::new)?),
        "run" => Request::Run(strict(encoding, bytes).map(Box::new)?),
        "append" => Request::Append(strict(encoding, bytes).map(Box::new)?),
        "close" => Request::Close(strict(encoding, bytes)?),
        "get" => Request::Get(strict(encoding, bytes)?),
        "list" => Request::List(strict(encoding, bytes)?),
        "results" => Request::Results(strict(encoding, bytes)?),
        "cancel" => Request::Cancel(strict(encoding, bytes)?),
        "retry" => Request::Retry(strict(encoding, bytes)?),
        "wait" => Request::Wait(strict(encoding, bytes)?),
        "follow" => Request::Follow(strict(encoding, bytes)?),
        other => {
            let message = format!("there is no request `{other}`");
            let refusal = Refusal::new(code::UNKNOWN_VERB, message);
            return Err(match nearest(other, WORK_VERBS.iter().copied()) {
                Some(near) => refusal.hint(format!("did you mean `{near}`?")),
                None => refusal.hint(format!("there are: {}", WORK_VERBS.join(", "))),
            });
        }
    })
}

/// Reads one object, strictly. Fields without names would be taken for whatever stands first.
pub(crate) fn strict<T>(encoding: Encoding, bytes: &[u8]) -> Result<T, Refusal>
where
    T: serde::de::DeserializeOwned + schemars::JsonSchema,
{
    let first = match encoding {
        Encoding::Json => bytes.iter().copied().find(|byte| !byte.is_ascii_whitespace()),
        Encoding::MsgPack => bytes.first().copied(),
    };
    let named = match (encoding, first) {
        (_, None) => true,
        (Encoding::Json, Some(byte)) => byte != b'[',
        (Encoding::MsgPack, Some(byte)) => !matches!(byte, 0x90..=0x9f | 0xdc | 0xdd),
    };
    if named {
        return decode_strict(encoding, bytes);
    }
    let message = format!("a list came, not one object (read as {})", encoding.name());
    Err(Refusal::new(code::MALFORMED, message).hint("every field has its name"))
}

/// The id of a message of the inbox that brings none: the same whoever reads it and how often.
pub(crate) fn derived_id(stream: &str, seq: Seq, at: Stamp) -> WorkId {
    // FNV-1a, twice with different beginnings: it must be the same in every version.
    let hash = |basis: u64| {
        let bytes = stream.bytes().chain(seq.to_le_bytes()).chain(at.0.to_le_bytes());
        bytes.fold(basis, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    let mut random = [0; 10];
    random[..8].copy_from_slice(&hash(0xcbf2_9ce4_8422_2325).to_be_bytes());
    random[8..].copy_from_slice(&hash(0x6c62_272e_07bb_0142).to_be_bytes()[..2]);
    WorkId(uuid::Builder::from_unix_timestamp_millis(at.0, &random).into_uuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caller_is_the_last_token_or_the_owner() {
        let (verb, caller) = address("lh.work.submit.anna").unwrap();
        assert_eq!((verb, caller.as_str()), ("submit", "anna"));
        assert_eq!(address("lh.work.get").unwrap().1, CallerName::owner());
        assert_eq!(&*address("lh.work.get.Anna").unwrap_err().code, code::INVALID);
    }

    #[test]
    fn a_derived_id_is_a_version_7_that_tells_messages_apart() {
        let at = Stamp(1_795_405_323_120);
        let id = derived_id("lh-inbox", 7, at);
        assert_eq!(id, derived_id("lh-inbox", 7, at));
        assert_eq!(id.made_at_ms(), Some(at.0));
        assert_ne!(id, derived_id("lh-inbox", 8, at));
        assert_ne!(id, derived_id("other", 7, at));
    }

    #[test]
    fn an_unknown_verb_gets_the_nearest_one() {
        let refusal = request("sumbit", Encoding::Json, b"{}").unwrap_err();
        assert_eq!(refusal.hint.as_deref(), Some("did you mean `submit`?"));
    }
}
