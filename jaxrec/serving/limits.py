"""How often a client may ask: token buckets, each kept as one number.

A bucket is full at first, loses one token with each request and gains `rate` of them a second. It
is enough to remember when it would be full again (the generic cell rate algorithm of ATM networks):
one that is full by now is like one that was never there.
"""

from collections import OrderedDict

_ROUNDING = 1e-6  # seconds; who comes after the time that was told must not be sent away again


class Limits:
    """Buckets of clients. A bucket holds the tokens of one second, and at least one.

    Of clients beyond `most_clients` those that asked longest ago are forgotten, and so begin with a
    full bucket.
    """

    def __init__(self, rate: float | None, *, most_clients: int = 10_000) -> None:
        """Makes no bucket yet.

        Args:
          rate: requests a second of each client, above 0; None does not limit.
          most_clients: how many are remembered.
        """
        self._rate, self._most_clients = rate, most_clients
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, who: str, now: float, rate: float | None = None) -> float:
        """Takes a token of a client's, if there is one.

        Args:
          who: names the client.
          now: seconds, of a clock that does not go back.
          rate: the client's own; None is that of all.

        Returns:
          0 when the request may go, or the seconds after which it may; then no token is taken.
        """
        rate = self._rate if rate is None else rate
        if rate is None:
            return 0.0
        full_at = max(self._full_at.get(who, now), now)
        seconds_of_tokens = max(1.0, rate) / rate
        wait = full_at + 1 / rate - now - seconds_of_tokens
        if wait > _ROUNDING:
            return wait
        self._full_at[who] = full_at + 1 / rate
        self._full_at.move_to_end(who)
        if len(self._full_at) > self._most_clients:
            self._full_at.popitem(last=False)
        return 0.0
