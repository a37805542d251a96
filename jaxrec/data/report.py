"""The account of a preparation: what each rule dropped, and what it left."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxrec.columns import aligned
from jaxrec.typing import UserError


@dataclasses.dataclass(frozen=True)
class Report:
    """Rows with the keys rule, dropped_events, left_events, left_users and left_items.

    A row may have `notes` as well: sentences on what did not come along, or not as it was.
    """

    rows: tuple[dict[str, Any], ...] = ()

    @property
    def left_events(self) -> int:
        return self.rows[-1]["left_events"]

    def note(
        self,
        rule: str,
        events: int,
        users: int,
        items: int,
        *,
        blame: str | None = None,
        notes: Sequence[str] = (),
    ) -> "Report":
        """Returns the report with what a rule left.

        Args:
          rule: its name.
          events, users, items: how many are left.
          blame: what to name in the error instead of the rule.
          notes: what else to say of it.

        Raises:
          UserError: when the rule dropped the last event.
        """
        dropped = self.left_events - events if self.rows else 0
        if dropped and not events:
            raise UserError(
                f"no events are left: the rule {blame or rule!r} dropped the last {dropped:,} of "
                f"{self.rows[0]['left_events']:,}. Loosen that rule, or give a larger log."
            )
        row = {
            "rule": rule,
            "dropped_events": dropped,
            "left_events": events,
            "left_users": users,
            "left_items": items,
        }
        return Report((*self.rows, row)).noted(notes)

    def noted(self, notes: Sequence[str]) -> "Report":
        """Returns the report with more notes on its last row."""
        if not notes:
            return self
        last = self.rows[-1]
        return Report((*self.rows[:-1], last | {"notes": [*last.get("notes", ()), *notes]}))

    def joined(self, events: int, users: int, items: int) -> "Report":
        """Returns the report with the events that a dataset held before these were appended."""
        row = {
            "rule": "with the earlier events",
            "dropped_events": 0,
            "left_events": events,
            "left_users": users,
            "left_items": items,
        }
        return Report((*self.rows, row))


def format_report(report: Sequence[dict[str, Any]]) -> str:
    """Returns the cleaning report as an aligned table, and below it the notes."""
    names = ("rule", "dropped_events", "left_events", "left_users", "left_items")
    rows = [tuple(name.replace("_", " ") for name in names)]
    rows += [(str(row["rule"]), *(f"{row[name]:,}" for name in names[1:])) for row in report]
    table = "\n".join(aligned(rows))
    notes = [f"- {note}" for row in report for note in row.get("notes", ())]
    return "\n".join([table, "", *notes]) if notes else table


def sample(things: Sequence[str], most: int = 10) -> str:
    """Returns the first of some things in a line, and how many there are more."""
    more = len(things) - most
    return ", ".join(things[:most]) + (f" and {more:,} more" if more > 0 else "")
