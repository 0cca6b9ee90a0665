//! The recipes of `docs/recipes.md`, run as they stand there: each block, and what it prints.

use crate::{
    clients::{
        desk::{DOOR, Desk, printed},
        install, not_run,
    },
    house::House,
};

const RECIPES: &str = include_str!("../../docs/recipes.md");

/// A fenced block.
struct Block {
    heading: String,
    line: usize,
    language: String,
    text: String,
}

/// A block that is run, and what it prints.
struct Recipe {
    program: Block,
    prints: Option<Block>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut heading = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((n, line)) = lines.next() {
        if let Some(title) = line.strip_prefix("## ") {
            heading = title.to_owned();
        } else if let Some(language) = line.strip_prefix("```") {
            let inside = lines.by_ref().take_while(|(_, line)| *line != "```");
            let text = inside.map(|(_, line)| format!("{line}\n")).collect();
            let (heading, language) = (heading.clone(), language.to_owned());
            blocks.push(Block { heading, line: n + 1, language, text });
        }
    }
    blocks
}

/// All but those that install something: every program, beside the block behind it.
fn recipes() -> Vec<Recipe> {
    let mut recipes: Vec<Recipe> = Vec::new();
    for block in blocks(RECIPES) {
        match (block.language.as_str(), recipes.last_mut()) {
            ("console", _) => {}
            ("text", Some(recipe)) => {
                assert!(recipe.prints.is_none(), "line {}: a second answer", block.line);
                recipe.prints = Some(block);
            }
            ("sh" | "python" | "js", _) => recipes.push(Recipe { program: block, prints: None }),
            (other, _) => panic!("line {}: what is a block of `{other}`?", block.line),
        }
    }
    recipes
}

/// Whether a line is what was said it would be; `…` is anything.
fn line_fits(said: &str, line: &str) -> bool {
    let mut parts = said.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = line.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// The same for lines; a line that is only `…` is any number of lines.
fn fits(said: &[&str], lines: &[&str]) -> bool {
    match (said.split_first(), lines.split_first()) {
        (None, None) => true,
        (Some((&"…", said)), _) => (0..=lines.len()).any(|n| fits(said, &lines[n..])),
        (Some((said, more)), Some((line, lines))) => line_fits(said, line) && fits(more, lines),
        _ => false,
    }
}

async fn check(desk: &Desk, recipe: &Recipe) {
    let Recipe { program, prints } = recipe;
    let place = format!("docs/recipes.md:{}", program.line);
    let output = match program.language.as_str() {
        "python" => desk.python(&program.text).await,
        "js" => desk.node(&program.text).await,
        _ => desk.runs(&format!("{DOOR}\n{}", program.text)).await,
    };
    let output = printed(&place, &output);
    let prints = prints.as_ref().unwrap_or_else(|| panic!("{place}: does not say what it prints"));
    // The `nats` command puts empty lines between its answers.
    let full = |line: &&str| !line.is_empty();
    let said: Vec<&str> = prints.text.lines().filter(full).collect();
    let lines: Vec<&str> = output.lines().filter(full).collect();
    assert!(fits(&said, &lines), "{place} should print\n{}but prints\n{output}", prints.text);
}

async fn check_all(heading: &str, desk: &Desk) {
    let mine = recipes().into_iter().filter(|recipe| recipe.program.heading.contains(heading));
    let mut count = 0;
    for recipe in mine {
        check(desk, &recipe).await;
        count += 1;
    }
    assert!(count >= 2, "only {count} recipes under `{heading}`");
}

/// A house as the recipes begin with it: nothing but `longhouse up`.
async fn house() -> House {
    let mut house = House::new("");
    house.start(&["up", "--port", "0"]).await;
    house
}

#[tokio::test]
async fn the_recipes_for_the_nats_command_print_what_they_say() {
    let nats = match install::nats() {
        Ok(nats) => nats,
        Err(reason) => return not_run(&reason),
    };
    let house = house().await;
    check_all("`nats`", &Desk::beside(&house).with_nats(&nats)).await;
}

#[tokio::test]
async fn the_recipes_for_python_print_what_they_say() {
    install::python();
    let house = house().await;
    check_all("Python", &Desk::beside(&house)).await;
}

#[tokio::test]
async fn the_recipes_for_node_print_what_they_say() {
    install::node();
    let house = house().await;
    check_all("Node", &Desk::beside(&house).with_node()).await;
}

#[test]
fn every_recipe_is_tried_with_the_clients_that_it_names() {
    let consoles: String = blocks(RECIPES)
        .iter()
        .filter(|block| block.language == "console")
        .map(|block| block.text.as_str())
        .collect();
    // `nats-py` needs `nkeys` for credentials, which pip knows as an extra.
    let named = |package: &str| consoles.replace("[nkeys]", "").contains(package);
    let pinned = install::PYTHON.iter().filter(|package| !package.starts_with("nkeys"));
    for package in pinned.chain(&install::NODE).chain([&install::NATS]) {
        assert!(named(package), "docs/recipes.md does not name {package}");
    }
    let all = recipes();
    assert_eq!(all[0].program.text.trim(), DOOR, "the first block opens the door");
    let known = ["The `nats` command", "Python", "Node"];
    for recipe in &all[1..] {
        assert!(known.contains(&recipe.program.heading.as_str()), "line {}", recipe.program.line);
    }
}

#[test]
fn dots_stand_for_anything_and_nothing_else_does() {
    assert!(fits(&["a…c", "…", "d"], &["abbc", "x", "y", "d"]));
    assert!(fits(&["…", "d"], &["d"]));
    assert!(!fits(&["a…c"], &["abbd"]));
    assert!(!fits(&["a"], &["a", "b"]));
    assert!(!fits(&["ab…bc"], &["abc"]));
}
