//! The words of a Rust file: what is compiled, without comments and without what stands in strings.

/// One word (an identifier, a keyword, a number) of a file.
pub(crate) struct Word {
    /// As it is written.
    pub(crate) text: String,
    /// In which line, from 1.
    pub(crate) line: usize,
    /// What stands between it and the next word, without blanks.
    after: String,
}

/// A file as a list of words.
pub(crate) struct Code {
    /// In their order.
    pub(crate) words: Vec<Word>,
}

impl Code {
    /// Takes a file apart.
    pub(crate) fn of(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        let mut words: Vec<Word> = Vec::new();
        let (mut at, mut line) = (0, 1);
        while at < chars.len() {
            let end = skipped(&chars, at).unwrap_or(at);
            if end > at {
                line += chars[at..end].iter().filter(|c| **c == '\n').count();
                at = end;
                continue;
            }
            let c = chars[at];
            if is_word(c) {
                let end = at + chars[at..].iter().take_while(|c| is_word(**c)).count();
                let text = chars[at..end].iter().collect();
                words.push(Word { text, line, after: String::new() });
                at = end;
                continue;
            }
            line += usize::from(c == '\n');
            if let Some(word) = words.last_mut().filter(|_| !c.is_whitespace()) {
                word.after.push(c);
            }
            at += 1;
        }
        Self { words }
    }

    /// Whether a sign stands right behind a word.
    pub(crate) fn is_followed_by(&self, word: usize, sign: &str) -> bool {
        self.words[word].after.starts_with(sign)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The end of the comment, string or character that begins here, if one does.
fn skipped(chars: &[char], at: usize) -> Option<usize> {
    let begins = |text: &str| text.chars().enumerate().all(|(n, c)| chars.get(at + n) == Some(&c));
    if begins("//") {
        return Some(at + chars[at..].iter().take_while(|c| **c != '\n').count());
    }
    if begins("/*") {
        return Some(end_of_comment(chars, at));
    }
    // Prefixes of strings are words of their own only when no string follows.
    if at > 0 && is_word(chars[at - 1]) {
        return None;
    }
    let prefix = chars[at..].iter().take_while(|c| matches!(c, 'b' | 'c' | 'r')).count();
    let hashes = chars[at + prefix..].iter().take_while(|c| **c == '#').count();
    let quote = at + prefix + hashes;
    let is_raw = chars[at..at + prefix].contains(&'r');
    match chars.get(quote) {
        Some('"') if is_raw => Some(end_of_raw(chars, quote + 1, hashes)),
        Some('"') if hashes == 0 => Some(end_of_quoted(chars, quote + 1, '"')),
        // A lifetime has no second quote behind its first letter.
        Some('\'') if hashes == 0 && prefix <= 1 && !is_raw => {
            let is_char =
                chars.get(quote + 1) == Some(&'\\') || chars.get(quote + 2) == Some(&'\'');
            is_char.then(|| end_of_quoted(chars, quote + 1, '\''))
        }
        _ => None,
    }
}

fn end_of_comment(chars: &[char], at: usize) -> usize {
    let (mut at, mut depth) = (at + 2, 1);
    while at < chars.len() && depth > 0 {
        match (chars[at], chars.get(at + 1)) {
            ('/', Some('*')) => (depth, at) = (depth + 1, at + 2),
            ('*', Some('/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_quoted(chars: &[char], mut at: usize, quote: char) -> usize {
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

fn end_of_raw(chars: &[char], mut at: usize, hashes: usize) -> usize {
    while at < chars.len() {
        let closing = chars[at + 1..].iter().take(hashes).filter(|c| **c == '#').count();
        if chars[at] == '"' && closing == hashes {
            return at + 1 + hashes;
        }
        at += 1;
    }
    chars.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_compiled_counts_as_code() {
        let text = r####"
            //! tokio
            fn f<'a>(x: &'a str) -> char { /* tokio /* nested */ tokio */
                let _ = ("tokio \" tokio", r#"tokio " tokio"#, b"tokio", 'x', '\'', b'\\', r"\");
                let rc = r; '\u{1F600}' // tokio
            }
            bus::clock!()
        "####;
        let code = Code::of(text);
        let words: Vec<&str> = code.words.iter().map(|word| &*word.text).collect();
        assert_eq!(words.join(" "), "fn f a x a str char let _ let rc r bus clock");
        let bus = words.iter().position(|word| *word == "bus").unwrap();
        assert!(code.is_followed_by(bus, "::") && code.is_followed_by(bus + 1, "!"));
        assert_eq!(code.words[bus].line, 7);
    }
}
