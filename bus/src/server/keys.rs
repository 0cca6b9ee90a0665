//! The house's keys: operator mode from the first day.
//!
//! A chain of signatures says who may come in: the operator vouches for its signing key, that key for the
//! accounts, the account for its users. The server holds public keys and tokens only. The tokens are JSON Web
//! Tokens in the form of version 2 of the server's own library.

use super::{Error, private_folder, read, write_secret};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64URL};
use data_encoding::BASE32_NOPAD;
use nkeys::{KeyPair, KeyPairType};
use schemas::{time::Stamp, token::is_token};
use serde_json::{Value, json};
use sha2::{Digest, Sha512_256};
use std::{
    fmt,
    path::{Path, PathBuf},
};

const UNLIMITED: i64 = -1;

/// All keys of a house, with the tokens that vouch for them.
pub struct Keys {
    folder: PathBuf,
    account: KeyPair,
    system: KeyPair,
    owner: Credentials,
    operator_jwt: String,
    account_jwt: String,
    system_jwt: String,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("account", &self.account.public_key()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads the keys that lie in `folder`, or makes them if it is not there. Call it under the house's lock.
    pub fn open(folder: &Path, now: Stamp) -> Result<Keys, Error> {
        if !folder.try_exists().map_err(Error::file("look for", folder))? {
            make(folder, now)?;
        }
        let jwt = |name: &str| read(&folder.join(name)).map(|text| text.trim().to_owned());
        let owner = seed(folder, "owner.nk", KeyPairType::User)?;
        Ok(Keys {
            account: seed(folder, "account.nk", KeyPairType::Account)?,
            system: seed(folder, "system.nk", KeyPairType::Account)?,
            owner: Credentials::new("owner", &owner, jwt("owner.jwt")?),
            operator_jwt: jwt("operator.jwt")?,
            account_jwt: jwt("account.jwt")?,
            system_jwt: jwt("system.jwt")?,
            folder: folder.into(),
        })
    }

    /// Where they lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The account in which everything of the house happens.
    pub fn account(&self) -> String {
        self.account.public_key()
    }

    /// The account of the server's own events.
    pub fn system_account(&self) -> String {
        self.system.public_key()
    }

    /// The operator's token, which the server trusts above all.
    pub fn operator_jwt(&self) -> &str {
        &self.operator_jwt
    }

    /// Each account with its token, as the server preloads them.
    pub fn accounts(&self) -> [(String, &str); 2] {
        [(self.account(), &self.account_jwt), (self.system_account(), &self.system_jwt)]
    }

    /// The one with all rights in the house.
    pub fn owner(&self) -> &Credentials {
        &self.owner
    }

    /// Makes a new identity of the house with exactly these rights. Nothing is kept here: who holds the
    /// credentials is in.
    pub fn mint(&self, name: &str, rights: &Rights, now: Stamp) -> Result<Credentials, Error> {
        if !is_token(name) {
            return Err(Error::BadName(name.into()));
        }
        let user = KeyPair::new_user();
        let jwt = user_jwt(&self.account, &user, name, Some(rights), now);
        Ok(Credentials::new(name, &user, jwt))
    }
}

/// What an identity may do; nothing that is not named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Subjects on which it may publish.
    pub publish: Vec<String>,
    /// Subjects which it may hear.
    pub subscribe: Vec<String>,
    /// Whether it may answer what it hears, on the reply subject of each message.
    pub allow_responses: Option<Responses>,
}

/// How much may be answered to one message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Responses {
    /// How many answers; any number without.
    pub max: Option<u32>,
    /// How long after the message; for ever without.
    pub expires_s: Option<u32>,
}

impl Rights {
    fn claims(&self) -> Value {
        // To the server an empty list of what is allowed means everything.
        let only = |subjects: &[String]| match subjects {
            [] => json!({"deny": [">"]}),
            _ => json!({"allow": subjects}),
        };
        let mut claims = json!({"pub": only(&self.publish), "sub": only(&self.subscribe)});
        if let Some(responses) = self.allow_responses {
            let max = responses.max.map_or(UNLIMITED, i64::from);
            let ttl_ns = responses.expires_s.map_or(UNLIMITED, |s| i64::from(s) * 1_000_000_000);
            claims["resp"] = json!({"max": max, "ttl": ttl_ns});
        }
        claims
    }
}

/// What somebody needs to come in: his token, and the seed that proves it is his.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The name he was minted with.
    pub name: String,
    /// His public key.
    pub public_key: String,
    jwt: String,
    seed: String,
}

impl Credentials {
    fn new(name: &str, user: &KeyPair, jwt: String) -> Credentials {
        let seed = user.seed().expect("made from a seed, so it has one");
        Credentials { name: name.into(), public_key: user.public_key(), jwt, seed }
    }

    /// The text of a credentials file, as every NATS client reads it.
    pub fn text(&self) -> String {
        format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             Whoever holds this file is `{}` to the house: keep it to yourself.\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            self.jwt, self.name, self.seed
        )
    }

    /// Writes a credentials file that only its owner may read.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        write_secret(path, self.text().as_bytes())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("name", &self.name)
            .field("public_key", &self.public_key)
            .finish_non_exhaustive()
    }
}

fn seed(folder: &Path, name: &str, kind: KeyPairType) -> Result<KeyPair, Error> {
    let path = folder.join(name);
    let pair = KeyPair::from_seed(read(&path)?.trim()).ok();
    let kind = std::mem::discriminant(&kind);
    pair.filter(|pair| std::mem::discriminant(&pair.key_pair_type()) == kind)
        .ok_or(Error::BadKey { path })
}

/// Makes all keys beside the folder and moves them there at once: half a set is worth nothing.
fn make(folder: &Path, now: Stamp) -> Result<(), Error> {
    let parent = folder.parent().unwrap_or(Path::new("."));
    let fresh = tempfile::Builder::new()
        .prefix("keys-")
        .tempdir_in(parent)
        .map_err(Error::file("write in", parent))?;
    private_folder(fresh.path())?;

    let operator = KeyPair::new_operator();
    let signing = KeyPair::new_operator();
    let [system, account] = [KeyPair::new_account(), KeyPair::new_account()];
    let owner = KeyPair::new_user();
    let seeds = [
        ("operator.nk", &operator),
        ("operator-signing.nk", &signing),
        ("system.nk", &system),
        ("account.nk", &account),
        ("owner.nk", &owner),
    ];
    for (name, pair) in seeds {
        let seed = pair.seed().expect("just made, so it has a seed");
        write_secret(&fresh.path().join(name), format!("{seed}\n").as_bytes())?;
    }
    let jwts = [
        ("operator.jwt", operator_jwt(&operator, &signing, &system, now)),
        ("system.jwt", account_jwt(&signing, &system, "system", false, now)),
        ("account.jwt", account_jwt(&signing, &account, "longhouse", true, now)),
        ("owner.jwt", user_jwt(&account, &owner, "owner", None, now)),
    ];
    for (name, jwt) in jwts {
        write_secret(&fresh.path().join(name), format!("{jwt}\n").as_bytes())?;
    }
    std::fs::rename(fresh.path(), folder).map_err(Error::file("make the folder", folder))?;
    // Moved away, so there is nothing left to remove.
    let _ = fresh.keep();
    Ok(())
}

fn operator_jwt(operator: &KeyPair, signing: &KeyPair, system: &KeyPair, now: Stamp) -> String {
    let claims = json!({
        "type": "operator", "version": 2,
        "signing_keys": [signing.public_key()],
        "system_account": system.public_key(),
    });
    jwt(operator, operator, "longhouse", claims, now)
}

fn account_jwt(
    signing: &KeyPair,
    account: &KeyPair,
    name: &str,
    stores: bool,
    now: Stamp,
) -> String {
    let storage = if stores { UNLIMITED } else { 0 };
    let claims = json!({
        "type": "account", "version": 2,
        "limits": {
            "subs": UNLIMITED, "data": UNLIMITED, "payload": UNLIMITED,
            "imports": UNLIMITED, "exports": UNLIMITED, "wildcards": true,
            "conn": UNLIMITED, "leaf": UNLIMITED,
            "mem_storage": storage, "disk_storage": storage,
            "streams": storage, "consumer": storage, "max_ack_pending": UNLIMITED,
            "mem_max_stream_bytes": UNLIMITED, "disk_max_stream_bytes": UNLIMITED,
        },
        "default_permissions": {"pub": {}, "sub": {}},
    });
    jwt(signing, account, name, claims, now)
}

fn user_jwt(
    account: &KeyPair,
    user: &KeyPair,
    name: &str,
    rights: Option<&Rights>,
    now: Stamp,
) -> String {
    let mut claims = rights.map_or_else(|| json!({"pub": {}, "sub": {}}), Rights::claims);
    claims["type"] = "user".into();
    claims["version"] = 2.into();
    for limit in ["subs", "data", "payload"] {
        claims[limit] = UNLIMITED.into();
    }
    jwt(account, user, name, claims, now)
}

fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: Value, now: Stamp) -> String {
    let mut claims = json!({
        "iat": now.0 / 1000,
        "iss": issuer.public_key(),
        "sub": subject.public_key(),
        "name": name,
        "nats": nats,
    });
    let id = Sha512_256::digest(claims.to_string());
    claims["jti"] = BASE32_NOPAD.encode(&id).into();
    let header = BASE64URL.encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let signed = format!("{header}.{}", BASE64URL.encode(claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).expect("made from a seed, so it can sign");
    format!("{signed}.{}", BASE64URL.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const NOW: Stamp = Stamp(0);

    fn claims(jwt: &str) -> Value {
        let body = BASE64URL.decode(jwt.split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice(&body).unwrap()
    }

    #[test]
    fn the_second_start_finds_the_keys_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        let first = Keys::open(&folder, NOW).unwrap();
        let second = Keys::open(&folder, NOW).unwrap();
        assert_eq!(first.owner(), second.owner());
        assert_eq!(first.accounts(), second.accounts());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn nobody_else_can_read_a_key() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        Keys::open(&folder, NOW).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        let files: Vec<PathBuf> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 9);
        for file in files {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
        }
    }

    #[test]
    fn each_token_is_signed_by_the_one_above_it() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(&dir.path().join("keys"), NOW).unwrap();
        let user = keys.mint("home", &Rights::default(), NOW).unwrap();
        for jwt in [&keys.operator_jwt, &keys.account_jwt, &keys.system_jwt, &user.jwt] {
            let (signed, signature) = jwt.rsplit_once('.').unwrap();
            let issuer = claims(jwt)["iss"].as_str().unwrap().to_owned();
            KeyPair::from_public_key(&issuer)
                .unwrap()
                .verify(signed.as_bytes(), &BASE64URL.decode(signature).unwrap())
                .unwrap();
        }
        assert_eq!(claims(&user.jwt)["iss"], keys.account());
    }

    #[test]
    fn who_is_given_no_rights_has_none() {
        let claims = Rights::default().claims();
        assert_eq!(claims, json!({"pub": {"deny": [">"]}, "sub": {"deny": [">"]}}));
    }

    #[test]
    fn a_name_that_would_open_a_subject_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let keys = Keys::open(&dir.path().join("keys"), NOW).unwrap();
        for name in ["*", ">", "a.b", "", "-a", "Home", "a b", &"a".repeat(37)] {
            let minted = keys.mint(name, &Rights::default(), NOW);
            assert!(matches!(minted, Err(Error::BadName(_))), "{name}");
        }
    }

    #[test]
    fn a_damaged_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("keys");
        Keys::open(&folder, NOW).unwrap();
        std::fs::copy(folder.join("owner.nk"), folder.join("account.nk")).unwrap();
        let error = Keys::open(&folder, NOW).unwrap_err().to_string();
        assert!(error.contains("account.nk"), "{error}");
    }
}
