//! Dates: the real-time clock's registers as seconds since 1970, and seconds as a date to read.

use core::fmt;

/// Seconds since 1970 of the registers second, minute, hour, day, month, year (of 2000) and status B; none if they
/// are no date.
pub fn from_cmos(registers: [u8; 6], status: u8) -> Option<u64> {
    let binary = status & 4 != 0;
    let number = |byte: u8| {
        if binary {
            return Some(byte as u64);
        }
        let (tens, ones) = (byte >> 4, byte & 15);
        (tens < 10 && ones < 10).then_some(tens as u64 * 10 + ones as u64)
    };
    let [second, minute, hour, day, month, year] = registers;
    let hour = if status & 2 != 0 {
        number(hour)?
    } else {
        // 12-hour clock: 12 is 0, bit 7 is afternoon.
        number(hour & 0x7f)? % 12 + if hour & 0x80 != 0 { 12 } else { 0 }
    };
    let (second, minute, day, month) = (number(second)?, number(minute)?, number(day)?, number(month)?);
    let year = 2000 + number(year)?;
    let plausible =
        second < 61 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    plausible.then(|| days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to the given day (proleptic Gregorian; years from 1970 on).
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    // Years that begin in March put the leap day last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * m + 2) / 5 + day - 1;
    y * 365 + y / 4 - y / 100 + y / 400 + day_of_year - 719_468
}

/// A point in time as people read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    seconds: u64,
}

impl Date {
    /// The date `seconds` after 1970.
    pub fn of(seconds: u64) -> Date {
        Date { seconds }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.seconds / 86_400 + 719_468;
        let era_day = days % 146_097;
        let year_of_era = (era_day - era_day / 1460 + era_day / 36_524 - era_day / 146_096) / 365;
        let day_of_year = era_day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let m = (5 * day_of_year + 2) / 153;
        let (day, month) = (day_of_year - (153 * m + 2) / 5 + 1, if m < 10 { m + 3 } else { m - 9 });
        let year = year_of_era + days / 146_097 * 400 + (month <= 2) as u64;
        let s = self.seconds % 86_400;
        write!(f, "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn registers_become_seconds_in_every_encoding() {
        let at = 1_709_210_096; // 2024-02-29 12:34:56
        assert_eq!(from_cmos([0x56, 0x34, 0x12, 0x29, 0x02, 0x24], 2), Some(at));
        assert_eq!(from_cmos([56, 34, 12, 29, 2, 24], 6), Some(at));
        assert_eq!(from_cmos([0x56, 0x34, 0x92, 0x29, 0x02, 0x24], 0), Some(at), "12 pm");
        assert_eq!(from_cmos([0x56, 0x34, 0x12, 0x29, 0x02, 0x24], 0), Some(at - 12 * 3600), "12 am");
        assert_eq!(from_cmos([0xff; 6], 2), None, "no clock answers all ones");
        assert_eq!(Date::of(at).to_string(), "2024-02-29 12:34:56");
    }

    #[test]
    fn dates_and_days_agree_for_centuries() {
        let mut day = 0;
        for year in 1970..2470_u64 {
            assert_eq!(days_before(year, 1, 1), day);
            assert_eq!(Date::of(day * 86_400).to_string(), alloc::format!("{year}-01-01 00:00:00"));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            day += 365 + leap as u64;
        }
    }
}
