//! Dates for chat templates that write one (`strftime_now`).

/// Seconds of a day.
const DAY: i64 = 86_400;
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time (seconds since 1970, UTC) the way C's `strftime` does with English names; unknown letters are
/// an error.
pub(crate) fn strftime(format: &str, seconds: i64) -> Result<String, String> {
    let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let (month_name, day_name) = (MONTHS[month - 1], DAYS[days.rem_euclid(7) as usize]);
    let hour = time / 3600;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(c) = letters.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match letters.next() {
            Some('Y') => out += &format!("{year}"),
            Some('y') => out += &format!("{:02}", year.rem_euclid(100)),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('M') => out += &format!("{:02}", time / 60 % 60),
            Some('S') => out += &format!("{:02}", time % 60),
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{:02}:{:02}", time / 60 % 60, time % 60),
            Some('%') => out.push('%'),
            other => {
                return Err(format!("`%{}` in a date's format", other.map_or(String::new(), String::from)));
            }
        }
    }
    Ok(out)
}

/// Year, month (1-12) and day of the month of a day counted from 1970-01-01 (Gregorian calendar).
fn civil(days: i64) -> (i64, usize, i64) {
    let mut year = 1970 + days.div_euclid(366);
    let first = |year: i64| {
        let y = year - 1;
        365 * (year - 1970) + (y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400)) - (492 - 19 + 4)
    };
    while first(year + 1) <= days {
        year += 1;
    }
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let mut day = days - first(year);
    for (i, length) in [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30].iter().enumerate()
    {
        if day < *length {
            return (year, i + 1, day + 1);
        }
        day -= length;
    }
    (year, 12, day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        // date -u -d @N '+%A %d %B %Y %H:%M:%S'
        for (seconds, text) in [
            (0, "Thursday 01 January 1970 00:00:00"),
            (951_782_400, "Tuesday 29 February 2000 00:00:00"),
            (1_721_952_000, "Friday 26 July 2024 00:00:00"),
            (1_735_689_599, "Tuesday 31 December 2024 23:59:59"),
            (4_102_444_800, "Friday 01 January 2100 00:00:00"),
            (-1, "Wednesday 31 December 1969 23:59:59"),
        ] {
            assert_eq!(strftime("%A %d %B %Y %H:%M:%S", seconds).unwrap(), text);
        }
        assert_eq!(
            strftime("%d %b %y, %I %p 100%%", 1_721_952_000 + 13 * 3600).unwrap(),
            "26 Jul 24, 01 PM 100%"
        );
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
    }
}
