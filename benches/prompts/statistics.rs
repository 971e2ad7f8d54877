//! Statistics for small samples: intervals for a share, and a test for a difference.

/// How many passed, out of how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    pub passed: usize,
    pub of: usize,
}

impl Share {
    pub fn percent(self) -> f64 {
        100.0 * self.passed as f64 / self.of as f64
    }

    /// Wilson's interval at 95 %, in percent. Unlike the textbook one it stays within 0 and 100,
    /// and it is usable for fewer than 30 answers.
    pub fn interval(self) -> (f64, f64) {
        let z = 1.959_964;
        let n = self.of as f64;
        let p = self.passed as f64 / n;
        let middle = p + z * z / (2.0 * n);
        let reach = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        let scale = 100.0 / (1.0 + z * z / n);
        // At 0 and at 100 % the difference is a rounding error on either side of zero.
        let low = ((middle - reach) * scale).max(0.0);
        (low, (middle + reach) * scale)
    }
}

/// Two sets of outputs for the same questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    pub both: usize,
    /// Questions that only the first, or only the second, has solved.
    pub only_first: usize,
    pub only_second: usize,
    pub of: usize,
}

impl Pairs {
    pub fn add(&mut self, first: bool, second: bool) {
        self.of += 1;
        match (first, second) {
            (true, true) => self.both += 1,
            (true, false) => self.only_first += 1,
            (false, true) => self.only_second += 1,
            (false, false) => {}
        }
    }

    /// Returns second less first, in percentage points.
    pub fn difference(self) -> f64 {
        100.0 * (self.only_second as f64 - self.only_first as f64) / self.of as f64
    }

    /// Returns the p-value of McNemar's exact test, two-sided: the chance of a difference at least
    /// as large if both were equally good. Pairs with equal results do not count.
    pub fn p_value(self) -> f64 {
        let (few, many) = (
            self.only_first.min(self.only_second),
            self.only_first.max(self.only_second),
        );
        let n = few + many;
        // Each term follows from the one before it; 2^-n stays above zero for n up to 1,000.
        let mut term = 0.5_f64.powi(n as i32);
        let mut sum = 0.0;
        for k in 0..=few {
            sum += term;
            term *= (n - k) as f64 / (k + 1) as f64;
        }
        (2.0 * sum).min(1.0)
    }
}
