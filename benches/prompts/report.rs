//! The tables for `docs/prompts.md`.

use std::fmt::Write as _;

use autoglmd::engine::language;

use super::desk::{Question, Variant, Written};
use super::judge::{Judgement, Verdict};
use super::statistics::{Pairs, Share};
use super::tasks::Tongue;

/// A model's output, with its verdict.
pub struct Answer {
    pub written: Written,
    pub program: String,
    pub judgement: Judgement,
}

impl Answer {
    fn has_passed(&self) -> bool {
        self.judgement.verdict == Verdict::Passed
    }
}

/// A variant with its outputs, in the order of the questions.
pub struct Result<'a> {
    pub variant: &'a Variant,
    pub answers: Vec<Answer>,
}

impl Result<'_> {
    fn share(&self, questions: &[Question<'_>], belongs: impl Fn(&Question<'_>) -> bool) -> Share {
        let pairs = questions.iter().zip(&self.answers);
        let mut share = Share::default();
        for (_, answer) in pairs.filter(|(question, _)| belongs(question)) {
            share.of += 1;
            share.passed += usize::from(answer.has_passed());
        }
        share
    }

    /// English first, Chinese second. The questions hold each task in both, one after the other.
    fn tongues(&self) -> Pairs {
        let mut pairs = Pairs::default();
        for both in self.answers.chunks_exact(Tongue::ALL.len()) {
            pairs.add(both[0].has_passed(), both[1].has_passed());
        }
        pairs
    }

    fn label(&self) -> String {
        format!(
            "{} | {} | {:?} | {}",
            self.variant.model,
            self.answers[0].written.weights,
            self.variant.kv_type,
            self.variant.wording
        )
    }
}

/// Returns all tables.
pub fn tables(questions: &[Question<'_>], results: &[Result<'_>]) -> String {
    let mut text = String::new();
    overview(&mut text, questions, results);
    by_language(&mut text, questions, results);
    by_tier(&mut text, questions, results);
    failures(&mut text, results);
    if results.len() > 1 {
        differences(&mut text, results);
    }
    text
}

const VARIANT: &str = "model | weights | cache | wording";

fn head(text: &mut String, columns: &[&str]) {
    let _ = writeln!(text, "| {VARIANT} | {} |", columns.join(" | "));
    let _ = writeln!(text, "|{}", " --- |".repeat(4 + columns.len()));
}

fn cell(share: Share) -> String {
    let (low, high) = share.interval();
    format!(
        "{}/{}, {:.0} % ({low:.0} to {high:.0})",
        share.passed,
        share.of,
        share.percent()
    )
}

fn overview(text: &mut String, questions: &[Question<'_>], results: &[Result<'_>]) {
    let columns = ["passed", "English", "Chinese", "Chinese less English"];
    head(text, &columns);
    for result in results {
        let [english, chinese] =
            Tongue::ALL.map(|tongue| result.share(questions, |question| question.tongue == tongue));
        let pairs = result.tongues();
        let _ = writeln!(
            text,
            "| {} | **{}** | {} | {} | {:+.0} points (p = {:.2}) |",
            result.label(),
            cell(result.share(questions, |_| true)),
            cell(english),
            cell(chinese),
            pairs.difference(),
            pairs.p_value()
        );
    }
}

fn by_language(text: &mut String, questions: &[Question<'_>], results: &[Result<'_>]) {
    let mut languages: Vec<&str> = questions
        .iter()
        .map(|question| question.task.language)
        .collect();
    languages.dedup();
    let title = |name: &&str| language::language(name).map_or("", |language| language.title);
    text.push('\n');
    head(text, &languages.iter().map(title).collect::<Vec<_>>());
    rows(text, results, |result| {
        let share =
            |name: &&str| cell(result.share(questions, |question| question.task.language == *name));
        languages.iter().map(share).collect()
    });
}

fn by_tier(text: &mut String, questions: &[Question<'_>], results: &[Result<'_>]) {
    text.push('\n');
    head(text, &["tier 1", "tier 2", "tier 3"]);
    rows(text, results, |result| {
        let share = |tier| cell(result.share(questions, |question| question.task.tier == tier));
        (1..=3).map(share).collect()
    });
}

fn failures(text: &mut String, results: &[Result<'_>]) {
    text.push('\n');
    let mut columns: Vec<&str> = Verdict::FAILURES.map(Verdict::title).to_vec();
    columns.push("tokens per answer");
    head(text, &columns);
    rows(text, results, |result| {
        let count = |verdict| {
            let with = result.answers.iter().map(|answer| answer.judgement.verdict);
            with.filter(|found| *found == verdict).count().to_string()
        };
        let tokens: u32 = result
            .answers
            .iter()
            .map(|answer| answer.written.tokens)
            .sum();
        let mut cells: Vec<String> = Verdict::FAILURES.map(count).to_vec();
        cells.push((tokens as usize / result.answers.len()).to_string());
        cells
    });
}

fn rows<'a>(text: &mut String, results: &[Result<'a>], cells: impl Fn(&Result<'a>) -> Vec<String>) {
    for result in results {
        let _ = writeln!(
            text,
            "| {} | {} |",
            result.label(),
            cells(result).join(" | ")
        );
    }
}

/// Appends each variant beside the first one, question by question.
fn differences(text: &mut String, results: &[Result<'_>]) {
    let (first, others) = results.split_first().expect("there is one");
    text.push('\n');
    head(
        text,
        &["less the first row", "only this", "only the first", "p"],
    );
    for other in others {
        let mut pairs = Pairs::default();
        for (one, two) in first.answers.iter().zip(&other.answers) {
            pairs.add(one.has_passed(), two.has_passed());
        }
        let _ = writeln!(
            text,
            "| {} | {:+.0} points | {} | {} | {:.3} |",
            other.label(),
            pairs.difference(),
            pairs.only_second,
            pairs.only_first,
            pairs.p_value()
        );
    }
}

/// Prints the failures, so that their causes can be found.
pub fn show_failures(questions: &[Question<'_>], result: &Result<'_>) {
    for (question, answer) in questions.iter().zip(&result.answers) {
        if !answer.has_passed() {
            println!(
                "---- {} {}: {} ({:?}): {}\n{}\n{}\n",
                result.variant.model,
                question.task.language,
                question.task.name,
                question.tongue,
                answer.judgement.verdict.title(),
                answer.program,
                answer.judgement.because,
            );
        }
    }
}
