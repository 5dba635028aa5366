//! Linear programs, and the one crate that solves them.
//!
//! Everything else sees the trait only, so that another solver is a change of this file.

use std::time::Duration;

use microlp::{ComparisonOp, OptimizationDirection, Problem, SolveOutcome};

/// Minimise `cost · x` where every x is between 0 and its upper bound and every row holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LinearProgram {
    /// By variable.
    pub(super) cost: Vec<f64>,
    /// By variable; may be infinite.
    pub(super) upper: Vec<f64>,
    /// What must hold.
    pub(super) rows: Vec<Row>,
}

/// `Σ factor · x ≤ bound`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Variables and factors, each variable once.
    pub(super) terms: Vec<(usize, f64)>,
    /// The right-hand side.
    pub(super) bound: f64,
}

impl LinearProgram {
    /// Adds a variable and returns its number.
    pub(super) fn variable(&mut self, cost: f64, upper: f64) -> usize {
        self.cost.push(cost);
        self.upper.push(upper);
        self.cost.len() - 1
    }

    /// Adds a row.
    pub(super) fn at_most(&mut self, terms: Vec<(usize, f64)>, bound: f64) {
        self.rows.push(Row { terms, bound });
    }
}

/// The optimum of a linear program.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Optimum {
    /// The least cost.
    pub(super) cost: f64,
    /// By variable.
    pub(super) values: Vec<f64>,
}

/// Solves linear programs.
pub(super) trait LinearSolver {
    /// The optimum; `None` when there is none, or when it was not found in time.
    fn minimise(&self, program: &LinearProgram) -> Option<Optimum>;
}

/// The simplex method of the crate microlp.
pub(super) struct Microlp;

/// A program that takes longer would delay the start of a model by more than its optimum is worth.
const TIME_LIMIT: Duration = Duration::from_secs(2);

impl LinearSolver for Microlp {
    fn minimise(&self, program: &LinearProgram) -> Option<Optimum> {
        let mut problem = Problem::new(OptimizationDirection::Minimize);
        let bounds = program.cost.iter().zip(&program.upper);
        let variables: Vec<_> = bounds.map(|(&cost, &upper)| problem.add_var(cost, (0.0, upper))).collect();
        for row in &program.rows {
            let terms = row.terms.iter().map(|&(variable, factor)| (variables[variable], factor));
            problem.add_constraint(terms, ComparisonOp::Le, row.bound);
        }
        problem.set_time_limit(TIME_LIMIT);
        match problem.solve() {
            Ok(outcome @ SolveOutcome::Solution(_)) if outcome.is_optimal() => {
                let solution = outcome.into_solution().ok()?;
                let values = variables.iter().map(|&variable| solution.var_value(variable)).collect();
                Some(Optimum { cost: solution.objective(), values })
            }
            Ok(_) => {
                tracing::debug!("the linear program was not solved within {} ms", TIME_LIMIT.as_millis());
                None
            }
            Err(error) => {
                tracing::debug!("the linear program was not solved: {error}");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::Random;

    /// Every vertex is the intersection of as many of the bounding planes as there are variables: all are tried.
    fn enumerate(program: &LinearProgram) -> Option<f64> {
        let count = program.cost.len();
        let mut planes: Vec<(Vec<f64>, f64)> = Vec::new();
        for variable in 0..count {
            let axis: Vec<f64> = (0..count).map(|other| f64::from(u8::from(other == variable))).collect();
            planes.push((axis.clone(), 0.0));
            planes.push((axis, program.upper[variable]));
        }
        for row in &program.rows {
            let mut factors = vec![0.0; count];
            row.terms.iter().for_each(|&(variable, factor)| factors[variable] = factor);
            planes.push((factors, row.bound));
        }
        let mut best: Option<f64> = None;
        for chosen in 0u32..1 << planes.len() {
            if chosen.count_ones() as usize != count {
                continue;
            }
            let equations =
                (0..planes.len()).filter(|plane| chosen >> plane & 1 == 1).map(|plane| planes[plane].clone());
            let Some(point) = intersect(equations.collect()) else { continue };
            if is_feasible(program, &point) {
                let cost = cost_of(program, &point);
                best = Some(best.map_or(cost, |best: f64| best.min(cost)));
            }
        }
        best
    }

    fn intersect(mut equations: Vec<(Vec<f64>, f64)>) -> Option<Vec<f64>> {
        let count = equations.len();
        for column in 0..count {
            let pivot = (column..count)
                .max_by(|&one, &other| equations[one].0[column].abs().total_cmp(&equations[other].0[column].abs()))?;
            equations.swap(column, pivot);
            if equations[column].0[column].abs() < 1e-9 {
                return None;
            }
            let (factors, right) = equations[column].clone();
            for (row, equation) in equations.iter_mut().enumerate() {
                if row != column {
                    let scale = equation.0[column] / factors[column];
                    equation.0.iter_mut().zip(&factors).for_each(|(mine, pivots)| *mine -= scale * pivots);
                    equation.1 -= scale * right;
                }
            }
        }
        Some(equations.iter().enumerate().map(|(row, (factors, right))| right / factors[row]).collect())
    }

    fn is_feasible(program: &LinearProgram, point: &[f64]) -> bool {
        let within = |value: f64, upper: f64| value >= -1e-6 && value <= upper + 1e-6;
        point.iter().zip(&program.upper).all(|(&value, &upper)| within(value, upper))
            && program.rows.iter().all(|row| {
                row.terms.iter().map(|&(variable, factor)| factor * point[variable]).sum::<f64>() <= row.bound + 1e-6
            })
    }

    fn cost_of(program: &LinearProgram, point: &[f64]) -> f64 {
        program.cost.iter().zip(point).map(|(cost, value)| cost * value).sum()
    }

    #[test]
    fn the_optimum_is_that_of_all_vertices() {
        let mut random = Random::new(3);
        let (mut solved, mut impossible) = (0, 0);
        for _ in 0..1500 {
            let mut program = LinearProgram::default();
            let count = 1 + random.below(4);
            for _ in 0..count {
                program.variable(random.below(21) as f64 - 10.0, 1.0 + random.below(9) as f64);
            }
            for _ in 0..random.below(5) {
                let terms = (0..count).map(|variable| (variable, random.below(13) as f64 - 6.0)).collect();
                program.at_most(terms, random.below(30) as f64 - 8.0);
            }
            match (enumerate(&program), Microlp.minimise(&program)) {
                (Some(expected), Some(found)) => {
                    assert!(is_feasible(&program, &found.values), "{program:?}: {found:?}");
                    assert!((cost_of(&program, &found.values) - expected).abs() < 1e-5, "{program:?}: {found:?}");
                    assert!((found.cost - expected).abs() < 1e-5, "{program:?}: {found:?}");
                    solved += 1;
                }
                (None, None) => impossible += 1,
                (expected, found) => panic!("{program:?}: {expected:?} expected, {found:?} found"),
            }
        }
        assert!(solved > 500 && impossible > 50, "{solved} solved, {impossible} impossible");
    }

    #[test]
    fn an_unbounded_program_has_no_optimum() {
        let mut program = LinearProgram::default();
        program.variable(-1.0, f64::INFINITY);
        assert_eq!(Microlp.minimise(&program), None);
    }
}
