//! Measures what a call into a plugin takes: `plugin_calls [CALLS]`, with the metric plugins beside this program's folder.

use e2llm_harness::plugins::{HOST, Index, SearchPath};
use e2llm_plugin::Scored;
use e2llm_plugin::client::MetricClient;
use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

const METRICS: [&str; 4] = ["needle", "choice", "qa", "rouge"];

fn main() -> Result<(), Box<dyn Error>> {
    let calls: u32 = std::env::args().nth(1).map_or(Ok(20_000), |n| n.parse())?;
    let folder: Option<PathBuf> = std::env::current_exe()?.ancestors().nth(2).map(Into::into);
    let index = Index::scan(&SearchPath::usual(&folder.into_iter().collect::<Vec<_>>()))?;
    println!("metric  `info` us  `score` us  (the right answer of the plugin itself, JSON both ways)");
    for name in METRICS {
        let client = MetricClient::create(&index.metric_of(name)?.load()?, Some(&HOST))?;
        let sample: Scored = client.info()?.gold;
        let each = |call: &dyn Fn() -> e2llm_plugin::Result<()>| -> Result<f64, Box<dyn Error>> {
            call()?; // the first one also makes what a plugin keeps
            let start = Instant::now();
            (0..calls).try_for_each(|_| call())?;
            Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(calls))
        };
        let info = each(&|| client.info().map(drop))?;
        let score = each(&|| client.score(&sample).map(drop))?;
        println!("{name:7} {info:9.2} {score:11.2}");
    }
    Ok(())
}
