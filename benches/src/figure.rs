//! The last lines of every benchmark: one figure each, for people and scripts.

/// Prints `NAME.FIGURE VALUE UNIT`.
pub fn print_figure(name: &str, value: f64, unit: &str) {
    println!("{name} {value:.3} {unit}");
}
