use super::super::leaderboard::decimals;
use super::*;

fn results() -> Results {
    let records = [
        in_slice(answered(0, "d1", &[("a", 1.0), ("count", 1.0)]), "difficulty", "hard"),
        answered(1, "d2", &[("a", 1.0), ("count", 0.0)]),
    ];
    Results::new(identity(), vec![score(&records, &["a", "count"]).unwrap()])
}

fn read(text: &str) -> Vec<Vec<String>> {
    csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(text.as_bytes())
        .records()
        .map(|r| r.unwrap().iter().map(str::to_owned).collect())
        .collect()
}

#[test]
fn a_whole_leaderboard() {
    let text = leaderboard_csv(&[LeaderboardRun { name: "first", results: &results() }]).unwrap();
    let expected = [
        "run,backend,model,task,task_version,split,slice,metric,metric_version,primary,unit,value,stderr,ci_low,\
         ci_high,n,n_error,n_null,n_truncated,prompt_style,prompt_hash,truncation,prompt_tokens,context_tokens,\
         compressed_tokens,soft_tokens,sample_data,note",
        "first,e2llm,e2llm-135m,quality,2,test,all,a,family@3,true,%,100.0000,0.0000,100.0000,100.0000,2,0,0,0,\
         e2llm,0123456789abcdef,none,100.0000,1000.0000,940.0000,40.0000,true,adapter untrained",
        "first,e2llm,e2llm-135m,quality,2,test,all,count,family@3,false,count,1.0000,1.0000,0.0000,2.0000,2,0,0,0,\
         e2llm,0123456789abcdef,none,100.0000,1000.0000,940.0000,40.0000,true,adapter untrained",
        "first,e2llm,e2llm-135m,quality,2,test,difficulty=hard,a,family@3,true,%,100.0000,,,,1,0,0,0,\
         e2llm,0123456789abcdef,none,100.0000,1000.0000,940.0000,40.0000,true,\
         adapter untrained; no interval: one document",
        "first,e2llm,e2llm-135m,quality,2,test,difficulty=hard,count,family@3,false,count,1.0000,,,,1,0,0,0,\
         e2llm,0123456789abcdef,none,100.0000,1000.0000,940.0000,40.0000,true,\
         adapter untrained; no interval: one document",
        "",
    ];
    assert_eq!(text, expected.join("\r\n"));
}

#[test]
fn awkward_names_survive_csv() {
    let mut results = results();
    results.run.model = "a, \"b\"\nc\r\nd".into();
    results.tasks[0].meta.split = " spaced ".into();
    results.tasks[0].slices[1].slice = "domain=Law, \"old\"".into();
    let text = leaderboard_csv(&[LeaderboardRun { name: "x,y", results: &results }]).unwrap();
    let rows = read(&text);
    assert_eq!(rows.len(), 5);
    assert!(rows.iter().all(|r| r.len() == 28));
    assert_eq!(rows[1][0], "x,y");
    assert_eq!(rows[1][2], "a, \"b\"\nc\r\nd");
    assert_eq!(rows[1][5], " spaced ");
    assert_eq!(rows[3][6], "domain=Law, \"old\"");
}

#[test]
fn several_runs_follow_each_other() {
    let (one, mut two) = (results(), results());
    two.run.backend = "truncate".into();
    let runs = [LeaderboardRun { name: "one", results: &one }, LeaderboardRun { name: "two", results: &two }];
    let rows = read(&leaderboard_csv(&runs).unwrap());
    let order: Vec<_> = rows[1..].iter().map(|r| format!("{} {} {}", r[0], r[6], r[7])).collect();
    assert_eq!(order[..3], ["one all a", "one all count", "one difficulty=hard a"]);
    assert_eq!(order[4], "two all a");
    assert_eq!(order.len(), 8);
}

#[test]
fn nothing_to_show_is_an_error() {
    assert_eq!(leaderboard_csv(&[]).unwrap_err().to_string(), "a leaderboard needs at least one run");
    let empty = Results::new(identity(), vec![]);
    let error = leaderboard_markdown(&[LeaderboardRun { name: "r", results: &empty }]).unwrap_err();
    assert_eq!(error.to_string(), "run `r` has no results to show");
}

#[test]
fn numbers_are_never_minus_zero() {
    assert_eq!(decimals(-0.00001, 4), "0.0000");
    assert_eq!(decimals(-0.0, 4), "0.0000");
    assert_eq!(decimals(-0.5, 4), "-0.5000");
    assert_eq!(decimals(0.00005, 4), "0.0001");
    assert_eq!(decimals(12.34565, 4), "12.3456", "the exact binary value decides");
}

#[test]
fn markdown_puts_runs_side_by_side() {
    let one = results();
    let mut two = results();
    two.run.backend = "tr|uncate".into();
    two.run.warnings.clear();
    two.tasks[0].meta.truncation = "middle-longbench-v2".into();
    let mut other = two.tasks[0].clone();
    other.meta.task = "niah".into();
    two.tasks.push(other);
    two.tasks[0].meta.trained_on = Some(2);
    let broken = [
        failed(0, "d1", "no\nluck"),
        answered(1, "d2", &[("a", 1.0)]),
        answered(2, "d3", &[("a", 0.0)]),
        answered(3, "d4", &[("a", 0.5)]),
    ];
    let mut three = Results::new(identity(), vec![score(&broken, &["a"]).unwrap()]);
    three.tasks[0].meta.sample_data = false;
    let (low, high) = {
        let a = &three.tasks[0].slices[0].metrics[0];
        (decimals(a.ci_low.unwrap(), 2), decimals(a.ci_high.unwrap(), 2))
    };
    let runs = [("one", &one), ("two", &two), ("three", &three)]
        .map(|(name, results)| LeaderboardRun { name, results });
    let expected = format!(
        "| run | backend | model | quality@2 test e2llm 01234567 family@3 sample records (a, %) | niah@2 (a, %) | \
         quality@2 test e2llm 01234567 family@3 (a, %) |
| --- | --- | --- | ---: | ---: | ---: |
| one | e2llm | e2llm-135m | 100.00 [100.00, 100.00] | - | - |
| two | tr\\|uncate | e2llm-135m | 100.00 [100.00, 100.00] | 100.00 [100.00, 100.00] | - |
| three | e2llm | e2llm-135m | - | - | 37.50 [{low}, {high}] ERR(1 of 4) |

- one: made from the sample records, not a benchmark result: quality
- one: adapter untrained
- two: made from the sample records, not a benchmark result: quality, niah
- two: quality: the model was trained on the texts of 2 of the task's samples
- three: adapter untrained
- three: quality: first error, of sample s0: no luck
"
    );
    assert_eq!(leaderboard_markdown(&runs).unwrap(), expected);
}

#[test]
fn timings_by_hand() {
    let mut records = [answered(0, "d", &[]), failed(1, "d", "boom"), answered(2, "d", &[])];
    if let Outcome::Answered { usage, .. } = &mut records[2].outcome {
        usage.time_to_first_token = 1.5;
        usage.generated_tokens = 1;
        usage.decode_time = 0.0;
        usage.peak_memory = None;
    }
    let timings = TaskTimings::of("qmsum", &records.iter().collect());
    records.reverse();
    assert_eq!(TaskTimings::of("qmsum", &records.iter().collect()), timings);
    let empty = TaskTimings::of("niah", &records[1..2].iter().collect());
    let expected = [
        "task,n,ttft_mean_s,ttft_p50_s,ttft_p95_s,decode_tokens_per_s,generated_tokens,peak_memory_mib",
        "qmsum,2,1.0000,1.0000,1.4500,5.0000,12,3.0000",
        "niah,0,,,,,0,",
        "",
    ];
    assert_eq!(timings_csv(&[timings, empty]).unwrap(), expected.join("\r\n"));
}

#[test]
fn a_heat_map_has_every_length_with_every_depth() {
    let at = |i: u64, length: &str, depth: &str, a: f64| {
        in_slice(in_slice(answered(i, "d", &[("a", a)]), "length", length), "depth", depth)
    };
    let broken = in_slice(in_slice(failed(4, "d", "e"), "length", "16000"), "depth", "50");
    let records = [
        at(0, "16000", "50", 1.0),
        at(1, "4000", "100", 0.5),
        at(2, "4000", "0", 1.0),
        at(3, "4000", "100", 0.0),
        broken,
    ];
    let found =
        cells("niah", &records.iter().collect(), &[metric()], &["a".to_owned()], &as_declared).unwrap();
    let text = heatmap_csv(&found).unwrap();
    assert_eq!(
        text,
        "task,length,by,level,metric,unit,value,n\r\n\
         niah,4000,depth,0,a,%,100.0000,1\r\n\
         niah,4000,depth,100,a,%,25.0000,2\r\n\
         niah,16000,depth,50,a,%,50.0000,2\r\n"
    );
    let words = in_slice(answered(0, "d", &[("a", 1.0)]), "length", "short");
    assert!(
        cells("v2", &[words].iter().collect(), &[metric()], &["a".to_owned()], &as_declared)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_row_says_how_many_texts_the_model_was_trained_on() {
    let mut results = results();
    let note = |results: &Results| {
        read(&leaderboard_csv(&[LeaderboardRun { name: "r", results }]).unwrap())[1].last().unwrap().clone()
    };
    results.tasks[0].meta.trained_on = Some(0);
    assert!(!note(&results).contains("trained on"));
    results.tasks[0].meta.trained_on = Some(2);
    assert!(note(&results).contains("the model was trained on the texts of 2 of the task's samples"));
}
