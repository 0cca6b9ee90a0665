//! Amounts as people write them on a command line: `512M`, `90s`, `KEY=VALUE`, `0.5`.

use schemas::{
    amount::Cpus,
    time::Seconds,
    token::{NodeName, TaskName},
};
use std::str::FromStr;

/// An amount of memory, in whole MiB (rounded up).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) mib: u64,
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no amount of memory; write it as 512M, 2G or 1.5GiB");
        let (number, unit) = split_unit(text).ok_or_else(wrong)?;
        let power = match unit.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(wrong()),
        };
        let mib = number * 1024_f64.powi(power) / (1024.0 * 1024.0);
        if !mib.is_finite() || mib > 1e12 {
            return Err(format!("`{text}` is more memory than there is"));
        }
        Ok(Self { mib: mib.ceil() as u64 })
    }
}

/// A duration: `90`, `90s`, `1m30s`, `250ms`, `2h`, `1d`.
pub(crate) fn duration(text: &str) -> Result<Seconds, String> {
    let wrong = || format!("`{text}` is no duration; write it as 90s, 1m30s, 2h or 250ms");
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        let seconds: f64 = text.parse().map_err(|_| wrong())?;
        return seconds_of(seconds).ok_or_else(wrong);
    }
    let (mut rest, mut sum) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        sum += number
            * match &rest[..letters] {
                "ms" => 0.001,
                "s" | "sec" => 1.0,
                "m" | "min" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(wrong()),
            };
        rest = &rest[letters..];
    }
    if text.is_empty() { Err(wrong()) } else { seconds_of(sum).ok_or_else(wrong) }
}

fn seconds_of(seconds: f64) -> Option<Seconds> {
    let ms = (seconds * 1000.0).round();
    (ms >= 0.0 && ms <= Seconds::MAX.ms as f64).then_some(Seconds { ms: ms as u64 })
}

/// A number of cores: `2`, `0.5`.
pub(crate) fn cpus(text: &str) -> Result<Cpus, String> {
    let wrong = || format!("`{text}` is no number of cores; write it as 2 or 0.5");
    let cores: f64 = text.parse().map_err(|_| wrong())?;
    let milli = (cores * 1000.0).round();
    if !(0.0..=Cpus::MAX.milli as f64).contains(&milli) {
        return Err(wrong());
    }
    Ok(Cpus { milli: milli as u64 })
}

/// An environment variable: `KEY=VALUE`, or `KEY` for the value that it has here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        if name.is_empty() || name.contains('\0') {
            return Err(format!("`{text}` is no variable; write it as KEY=VALUE"));
        }
        Ok(Self { name: name.to_owned(), value })
    }
}

/// `WORK`, `WORK/task` or `WORK/task/index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) work: String,
    pub(crate) task: Option<TaskName>,
    pub(crate) index: Option<u32>,
}

impl FromStr for Place {
    type Err = String;

    /// Names of works are free text and may hold slashes: what does not look like a task or an
    /// index belongs to the name.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty text names no work".to_owned());
        }
        if let Some((front, index)) = text.rsplit_once('/')
            && let (Ok(index), Some((work, task))) = (index.parse::<u32>(), front.rsplit_once('/'))
            && !work.is_empty()
            && let Ok(task) = TaskName::new(task)
        {
            return Ok(Self { work: work.to_owned(), task: Some(task), index: Some(index) });
        }
        if let Some((work, task)) = text.rsplit_once('/')
            && !work.is_empty()
        {
            let task = TaskName::new(task).map_err(|error| error.to_string())?;
            return Ok(Self { work: work.to_owned(), task: Some(task), index: None });
        }
        Ok(Self { work: text.to_owned(), task: None, index: None })
    }
}

/// A node's name.
pub(crate) fn node(text: &str) -> Result<NodeName, String> {
    NodeName::new(text).map_err(|error| error.to_string())
}

fn split_unit(text: &str) -> Option<(f64, &str)> {
    let at = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..at].trim().parse().ok()?;
    (number >= 0.0 && number.is_finite()).then_some((number, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mib(text: &str) -> Result<u64, String> {
        text.parse::<Memory>().map(|memory| memory.mib)
    }

    #[test]
    fn memory_is_counted_in_powers_of_1024_and_rounded_up() {
        assert_eq!(mib("512M"), Ok(512));
        assert_eq!(mib("512MiB"), Ok(512));
        assert_eq!(mib("1.5g"), Ok(1536));
        assert_eq!(mib("1k"), Ok(1));
        assert_eq!(mib("2T"), Ok(2 * 1024 * 1024));
        for bad in ["", "512", "M", "-1G", "1X", "infG", "1e300G", "5 apples"] {
            assert!(mib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bare_number_is_no_memory_because_nobody_knows_of_what() {
        assert!(mib("512").unwrap_err().contains("512M"));
    }

    #[test]
    fn durations_are_sums_and_bare_numbers_are_seconds() {
        assert_eq!(duration("90"), Ok(Seconds::new(90)));
        assert_eq!(duration("1m30s"), Ok(Seconds::new(90)));
        assert_eq!(duration("250ms"), Ok(Seconds::from_ms(250)));
        assert_eq!(duration("1.5h"), Ok(Seconds::new(5400)));
        assert_eq!(duration("1d"), Ok(Seconds::new(86400)));
        for bad in ["", "s", "1x", "-1s", "1m30", "1s2", "..", "1e9", "99999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_come_in_thousandths() {
        assert_eq!(cpus("2"), Ok(Cpus::new(2)));
        assert_eq!(cpus("0.5"), Ok(Cpus { milli: 500 }));
        for bad in ["", "two", "-1", "nan", "inf", "1e12"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variable_may_have_equal_signs_in_its_value() {
        let variable: Variable = "A=b=c".parse().unwrap();
        assert_eq!((variable.name.as_str(), variable.value.as_deref()), ("A", Some("b=c")));
        assert_eq!("A=".parse::<Variable>().unwrap().value.as_deref(), Some(""));
        assert_eq!("A".parse::<Variable>().unwrap().value, None);
        assert!("=x".parse::<Variable>().is_err());
    }

    #[test]
    fn a_place_is_a_work_with_a_task_and_an_index_if_they_are_given() {
        let place = |text: &str| {
            text.parse::<Place>().map(|p| (p.work, p.task.map(|t| t.to_string()), p.index))
        };
        let task = |name: &str| Some(name.to_owned());
        assert_eq!(place("@last"), Ok(("@last".into(), None, None)));
        assert_eq!(place("@last/main"), Ok(("@last".into(), task("main"), None)));
        assert_eq!(place("@last/main/7"), Ok(("@last".into(), task("main"), Some(7))));
        assert_eq!(place("my work/main/7"), Ok(("my work".into(), task("main"), Some(7))));
        assert!(place("").is_err());
        assert!(place("@last/Not A Task").is_err());
    }
}
