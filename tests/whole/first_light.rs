//! The one path on which everything stands: submit, run, watch, result.

use crate::house::House;

#[tokio::test]
async fn one_command_runs_and_its_output_and_exit_code_come_back() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let said = house.longhouse(&["run", "--", "sh", "-c", "echo out; echo err >&2; exit 3"]).await;

    assert_eq!(String::from_utf8_lossy(&said.stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&said.stderr), "err\n");
    assert_eq!(said.status.code(), Some(3));
}

#[tokio::test]
async fn any_client_runs_a_work_with_one_request() {
    let house = House::up(&[("home", "cpus=2")]).await;

    let answer = house.ask("lh.work.run", r#"{"argv":["sh","-c","echo $LONGHOUSE_NODE"]}"#).await;

    assert_eq!(answer["state"], "finished", "{answer}");
    assert_eq!(answer["exit_code"], 0, "{answer}");
    assert_eq!(answer["stdout"], "home\n", "{answer}");
}

#[tokio::test]
async fn work_goes_where_the_card_is_and_stays_off_it_otherwise() {
    let house = House::up(&[("home", "cpus=4,gpus=1"), ("office", "cpus=16")]).await;

    let with = house.says(&["run", "--gpus", "1", "--", "printenv", "LONGHOUSE_NODE"]).await;
    let without = house.says(&["run", "--", "printenv", "LONGHOUSE_NODE"]).await;

    assert_eq!((with.as_str(), without.as_str()), ("home\n", "office\n"));
}

#[tokio::test]
async fn a_graph_runs_in_its_order_and_an_array_once_for_each_item() {
    let house = House::up(&[("a", "cpus=2"), ("b", "cpus=2")]).await;

    let answer = house
        .ask(
            "lh.work.run",
            r#"{"name":"graph","tasks":[
                {"name":"last","needs":["many"],"run":{"process":{"argv":["true"]}}},
                {"name":"many","run":{"process":{"argv":["sh","-c","echo {index} {item}"]}},
                 "array":{"items":["x","y","z"]}}]}"#,
        )
        .await;
    let results = house.ask("lh.work.results", r#"{"work":"graph"}"#).await;

    assert_eq!(answer["state"], "finished", "{answer}");
    let said: Vec<_> = results["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|outcome| outcome["task"] == "many")
        .map(|outcome| outcome["stdout"].as_str().unwrap())
        .collect();
    assert_eq!(said, ["0 x\n", "1 y\n", "2 z\n"]);
}

#[tokio::test]
async fn the_work_that_the_readme_shows_runs() {
    let house = House::up(&[("home", "cpus=2")]).await;
    let readme = include_str!("../../README.md");
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (work, _) = rest.split_once("```").unwrap();
    let file = house.dir.join("squares.toml");
    std::fs::write(&file, work).unwrap();

    house.says(&["submit", file.to_str().unwrap(), "--wait"]).await;
    let results = house.json(&["results", "squares", "--json"]).await;

    let said: Vec<_> = results["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|outcome| outcome["stdout"].as_str().unwrap())
        .collect();
    assert_eq!(said, ["4\n", "9\n", "16\n", "all squared\n"]);
}
