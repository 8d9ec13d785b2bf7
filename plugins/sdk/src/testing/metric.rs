//! Checks of a metric.

use super::{Report, check_unknown_method, ensure, odd_responses};
use crate::client::{MetricClient, Plugin};
use crate::{MetricInfo, Row, Scored, Scores, Unit, aggregate_values};
use std::collections::BTreeSet;

type Outcome = Result<(), String>;

fn text(e: crate::Error) -> String {
    e.to_string()
}

fn client(plugin: &Plugin) -> Result<(MetricClient, MetricInfo), String> {
    let metric = MetricClient::create(plugin, None).map_err(text)?;
    let info = metric.info().map_err(text)?;
    Ok((metric, info))
}

fn answered(info: &MetricInfo, prediction: &str) -> Scored {
    Scored { prediction: prediction.to_owned(), response: None, ..info.gold.clone() }
}

pub(super) fn verify(plugin: &Plugin) -> Report {
    let mut report = Report::default();
    report.check("info is complete and the same twice", || check_info(plugin));
    report.check("a right answer gets the maximum", || check_gold(plugin));
    report.check("an empty answer gets the minimum", || check_empty(plugin));
    report.check("any answer gets finite values in range", || check_odd(plugin));
    report.check("several references are no worse than one", || check_references(plugin));
    report.check("a sample without references is an error", || check_no_reference(plugin));
    report.check("two passes and four threads see the same", || check_repeats(plugin));
    report.check("the order of samples does not matter", || check_order(plugin));
    report.check("what is aggregated as declared is what is declared", || check_declared(plugin));
    report.check("unknown methods and requests are errors", || check_unknown_method(plugin));
    report
}

fn check_info(plugin: &Plugin) -> Outcome {
    let (a, b) = (client(plugin)?.1, client(plugin)?.1);
    ensure(a == b, || "two instances say different things".into())?;
    ensure(a.id == plugin.id(), || format!("its id is `{}`, exported as `{}`", a.id, plugin.id()))?;
    ensure(!a.version.is_empty() && !a.description.is_empty(), || "version or description is empty".into())?;
    ensure(!a.values.is_empty(), || "it has no values".into())?;
    let ids: BTreeSet<_> = a.values.iter().map(|v| &v.id).collect();
    ensure(ids.len() == a.values.len(), || "two of its values have the same id".into())?;
    ensure(!a.gold.references.is_empty(), || "its gold sample has no reference".into())
}

/// Calls `f` with every proportion that samples have: id, declared value of an empty answer, value found.
fn proportions(info: &MetricInfo, scores: &Scores, mut f: impl FnMut(&str, f64, f64) -> Outcome) -> Outcome {
    for v in info.values.iter().filter(|v| v.unit == Unit::Proportion) {
        if let Some(&value) = scores.get(&v.id) {
            f(&v.id, v.empty, value)?;
        }
    }
    Ok(())
}

fn check_gold(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    let scores = metric.score(&info.gold).map_err(text)?;
    ensure(!scores.is_empty(), || "no values".into())?;
    proportions(&info, &scores, |id, _, value| {
        ensure((value - 1.0).abs() < 1e-6, || format!("`{id}` of the gold sample is {value}"))
    })
}

fn check_empty(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    for empty in ["", " \n "] {
        let scores = metric.score(&answered(&info, empty)).map_err(text)?;
        proportions(&info, &scores, |id, expected, value| {
            ensure((value - expected).abs() < 1e-12, || format!("`{id}` of an empty answer is {value}"))
        })?;
    }
    Ok(())
}

fn check_odd(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    for response in odd_responses() {
        let scores = metric.score(&answered(&info, &response)).map_err(text)?;
        for (id, value) in &scores {
            ensure(value.is_finite(), || format!("`{id}` is {value}"))?;
        }
        proportions(&info, &scores, |id, _, value| {
            ensure((0.0..=1.0 + 1e-12).contains(&value), || format!("`{id}` is {value}"))
        })?;
    }
    Ok(())
}

fn check_references(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    let one = metric.score(&info.gold).map_err(text)?;
    let mut more = info.gold.clone();
    more.references.push(more.references[0].clone());
    let two = metric.score(&more).map_err(text)?;
    proportions(&info, &two, |id, _, value| {
        let before = one.get(id).copied().unwrap_or(0.0);
        ensure(value >= before - 1e-12, || format!("`{id}` fell from {before} to {value}"))
    })
}

fn check_no_reference(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    let sample = Scored { references: Vec::new(), ..info.gold };
    ensure(metric.score(&sample).is_err(), || "it was scored".into())
}

fn samples(info: &MetricInfo) -> Vec<Scored> {
    let mut all: Vec<_> = odd_responses().iter().map(|r| answered(info, r)).collect();
    all.push(info.gold.clone());
    all
}

fn check_repeats(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    let all = samples(&info);
    let pass = || all.iter().map(|s| metric.score(s).map_err(text)).collect::<Result<Vec<_>, _>>();
    let first = pass()?;
    ensure(pass()? == first, || "a second pass differs".into())?;
    let mut backwards =
        all.iter().rev().map(|s| metric.score(s).map_err(text)).collect::<Result<Vec<_>, _>>()?;
    backwards.reverse();
    ensure(backwards == first, || "scored backwards, samples get other values".into())?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(pass)).collect();
        for thread in threads {
            let seen = thread.join().map_err(|_| "a thread panicked".to_owned())??;
            ensure(seen == first, || "a thread saw something else".into())?;
        }
        Ok(())
    })
}

fn rows(metric: &MetricClient, info: &MetricInfo) -> Result<Vec<Row>, String> {
    samples(info).iter().map(|s| metric.score(s).map(|scores| Row { scores }).map_err(text)).collect()
}

fn check_declared(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    if !info.as_declared {
        return Ok(());
    }
    let mut rows = rows(&metric, &info)?;
    rows.push(Row::default());
    let declared = aggregate_values(&info.values, rows.iter().cloned());
    let made = metric.aggregate(rows).map_err(text)?;
    ensure(made == declared, || format!("it makes {made:?}, by its declaration it is {declared:?}"))
}

fn check_order(plugin: &Plugin) -> Outcome {
    let (metric, info) = client(plugin)?;
    let mut rows = rows(&metric, &info)?;
    let forward = metric.aggregate(rows.clone()).map_err(text)?;
    rows.reverse();
    let backward = metric.aggregate(rows).map_err(text)?;
    for v in &info.values {
        let (a, b) = (forward.get(&v.id), backward.get(&v.id));
        let close = matches!((a, b), (Some(a), Some(b)) if (a - b).abs() <= 1e-9 * a.abs().max(1.0));
        ensure(close, || format!("`{}`: {a:?} forwards, {b:?} backwards", v.id))?;
    }
    metric.aggregate(Vec::new()).map(drop).map_err(text)
}
