"""Draws items by weights that fall exponentially, in a time that does not depend on how many."""

from __future__ import annotations

import math

import torch

from torchrl_logo.data.alias_table import make_alias_table

__all__ = ["WeightClasses"]

_CLASSES = 256  # so that a class fits a byte, which sorts fastest

# Room to spare in a class, beside a part of what there is.
_SPARE = 16

# Items classified at once: their temporaries stay in a processor's cache.
_ITEMS_AT_ONCE = 32_768

# Weights of a class differ by at most exp(0.35): 0.7 of the proposals are accepted, or more.
_WIDEST = 0.35

# Probability that a draw on a GPU ends without an accepted proposal: what float64 rounds away.
_NEGLIGIBLE = 2.0**-53


class WeightClasses:
    r"""Draws items :math:`i` with probability proportional to :math:`\exp(-\min(u_i, C) / T)`.

    Items lie in 256 classes of equal width in :math:`u`, so that the weights of a class differ
    little. A draw takes a class, by what its items would weigh if all were as heavy as the
    heaviest possible one (alias table), then one of its items uniformly, and accepts it with its
    share of that weight; if not, it draws anew. So accepted items follow their weights exactly,
    however small a class is beside the others: nothing is summed over all items. (The class that
    is drawn by its bound and rejected within is the rejection method over groups of nearly equal
    weights of Rajasekaran and Ross, 1993, "Fast Algorithms for Generating Discrete Random Variates
    with Changing Distributions".)

    Classes are regions of one array with room to spare. To take an item out, its class's last item
    is moved into its place; to put one in, it is written behind the last.

    Where :math:`C / T` is so large (beyond 89) that 256 classes would be too wide, they begin at
    the smallest uncertainty and the last one takes all that is further than 89 temperatures from
    it, whose probability is below 1e-38 of the likeliest item's.

    Args:
        capacity (int): items are numbers from 0 to ``capacity - 1``.
        device (torch.device): where all tensors lie, in 14 bytes an item.

    Examples:
        >>> classes = WeightClasses(4, torch.device("cpu"))
        >>> classes.build(torch.tensor([0.0, 5.0, 9.0]), C=5.0, temperature=1.0)
        >>> item, weight = classes.draw(10_000, torch.Generator().manual_seed(0))
        >>> torch.bincount(item[:10_000])
        tensor([9858,   78,   64])
        >>> weight[item == 0][0]  # 1 and twice exp(-5), and its part of 3
        tensor(2.9601)
        >>> classes.replace(torch.tensor([0, 3]), torch.tensor([5.0, 5.0]))  # whether there is room
        True
        >>> torch.bincount(classes.draw(10_000, torch.Generator().manual_seed(0))[0][:10_000])
        tensor([2549, 2469, 2429, 2553])
    """

    def __init__(self, capacity: int, device: torch.device) -> None:
        self.device = device
        self._held = 0
        self.rearranged = False  # whether order and room tell more than the uncertainties
        # The regions; an item's place in them (-1: none); its part of its class's greatest weight.
        self._item = torch.zeros(self.most_places(capacity) + 1, dtype=torch.int32, device=device)
        self._place = torch.full((capacity,), -1, dtype=torch.int32, device=device)
        self._share = torch.zeros(capacity, device=device)

    def __len__(self) -> int:
        """Items that can be drawn."""
        return self._held

    @staticmethod
    def most_places(capacity: int) -> int:
        """The sum of :attr:`room`, at most."""
        return capacity + 2 * (capacity // 4) + _SPARE * _CLASSES

    @property
    def order(self) -> torch.Tensor:
        """All items, int32 ``[n]``, in the order in which they lie."""
        return torch.cat(
            [
                self._item[start : start + count]
                for start, count in zip(self._start.tolist(), self._count.tolist(), strict=True)
            ]
        )

    @property
    def room(self) -> torch.Tensor:
        """Items that each class has room for, int64 ``[256]``."""
        return self._room

    @torch.no_grad()
    def build(
        self,
        uncertainty: torch.Tensor,
        C: float,
        temperature: float,
        *,
        order: torch.Tensor | None = None,
        room: torch.Tensor | None = None,
    ) -> None:
        """Takes items in, in place of all that were there.

        Args:
            uncertainty (torch.Tensor): float32 ``[n]`` of the items ``0 .. n - 1``, finite and not
                negative.
            C (float): from here on all weigh the same.
            temperature (float): of the weights.

        Keyword Args:
            order (torch.Tensor, optional): int64, the items to take in, as :attr:`order` told it,
                so that the same draws follow. Defaults to all of them, ascending.
            room (torch.Tensor, optional): what :attr:`room` told. Defaults to a half more than
                there are.
        """
        self._set_scale(uncertainty, C, temperature)
        if order is not None:
            uncertainty = uncertainty[order]
        number, count = self._weigh(uncertainty, order)
        self._held = len(uncertainty)
        self._count = count.sum(0)
        if room is None:
            room = self._count + self._count // 4 + self._held // (4 * _CLASSES) + _SPARE
        self._room = torch.maximum(room, self._count)
        self._start = self._room.cumsum(0) - self._room
        self._arrange(number, count, order)
        self.rearranged = order is not None

    @staticmethod
    def spans(C: float, temperature: float) -> bool:
        """Whether classes from 0 to ``C`` are narrow enough; they depend on nothing else then."""
        return C / temperature <= _CLASSES * _WIDEST

    @torch.no_grad()
    def reweigh(self, uncertainty: torch.Tensor, temperature: float) -> None:
        """Changes the temperature, and leaves all items where they are.

        That goes where the classes :meth:`spans` at both temperatures.

        Args:
            uncertainty (torch.Tensor): float32 ``[n]``, as the items have it.
            temperature (float): of the weights.
        """
        self._set_scale(uncertainty, self._C, temperature)
        self._weigh(uncertainty, None)

    @torch.no_grad()
    def replace(self, item: torch.Tensor, uncertainty: torch.Tensor) -> bool:
        """Gives items, old or new ones, other uncertainties.

        Args:
            item (torch.Tensor): int64 ``[k]``, all different.
            uncertainty (torch.Tensor): float32 ``[k]``. Items with NaN are taken out.

        Returns:
            Whether there was room. If not, nothing is changed: :meth:`build` has to be called.
        """
        known = ~uncertainty.isnan()
        coming = item[known]
        number = torch.empty_like(coming, dtype=torch.uint8)
        share = torch.empty_like(coming, dtype=torch.float32)
        self._classify(uncertainty[known], number, share)
        number, order = number.sort(stable=True)
        coming, share = coming[order], share[order].double()
        added = torch.bincount(number, minlength=_CLASSES)

        place = self._place[item].long()
        place = place[place >= 0].sort().values
        going = self._item[place].long()
        at = torch.searchsorted(self._start, place, right=True) - 1
        removed = torch.bincount(at, minlength=_CLASSES)
        count = self._count - removed
        fits = (count + added <= self._room).all()
        if self._least > 0:
            fits &= (uncertainty[known] >= self._least).all()
        if not bool(fits):
            return False

        # The last items of a class move to where others left. Places and classes both ascend, so
        # that the n-th hole and the n-th item to move are of the same class.
        self._sum -= torch.bincount(at, self._share[going].double(), minlength=_CLASSES)
        self._item[place] = -1
        end = self._start + count  # [256]
        moved = self._item[_enumerate(end, removed)].long()
        moved = moved[moved >= 0]
        hole = place[place < end[at]]
        self._item[hole], self._place[moved] = moved.int(), hole.int()
        self._place[going] = -1

        place = _enumerate(end, added)
        self._item[place], self._place[coming] = coming.int(), place.int()
        self._share[coming] = share.float()
        self._sum += torch.bincount(number, self._share[coming].double(), minlength=_CLASSES)
        self._count = count + added
        self._sum.masked_fill_(self._count == 0, 0.0)  # no rest of rounding
        self._held += len(coming) - len(going)
        self.rearranged, self._tabulated = True, False
        return True

    def fits(self) -> bool:
        """Whether classes are narrow where the weight is: not, if all heavy items were replaced."""
        self._tabulate()
        if not self._least:
            return True
        return bool(self._mass[-1] <= _NEGLIGIBLE * self._mass.sum())

    @torch.no_grad()
    def draw(
        self, count: int, generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws with replacement. Waits for no device but the processor itself.

        On a GPU a draw makes a fixed number of proposals at once, so many that with a probability
        of 2 ** -53 none is accepted (then the first counts).

        Args:
            count (int): number of draws that are needed.
            generator (torch.Generator, optional): source, on this or another device.

        Returns:
            Items, int64 ``[B]`` with ``B >= count``, and their weights over the mean of all items'
            weights, float32 ``[B]``. What there is beyond ``count`` are further draws.
        """
        self._tabulate()
        if self.device.type != "cpu":
            item, weight, accepted = self._propose((self._rounds, count), generator)
            first = accepted.to(torch.uint8).argmax(0, keepdim=True)  # [1, B]
            return item.gather(0, first)[0].long(), weight.gather(0, first)[0]
        items: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        while count > 0:
            number = int(count / self._accepted + 3 * math.sqrt(count)) + 1
            item, weight, accepted = self._propose((number,), generator)
            row = accepted.nonzero().squeeze(-1)
            items.append(item.index_select(0, row))
            weights.append(weight.index_select(0, row))
            count -= len(row)
        if len(items) > 1:
            return torch.cat(items).long(), torch.cat(weights)
        return items[0].long(), weights[0]

    def _propose(
        self, shape: tuple[int, ...], generator: torch.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Items, their weights and whether each is accepted, all of ``shape``."""
        count = math.prod(shape)
        # A generator draws on its own device only.
        source = self.device if generator is None else generator.device
        draw = torch.rand(2, count, dtype=torch.float64, device=source, generator=generator)
        draw = draw.to(self.device, non_blocking=True)
        slot, place = draw[0].mul_(_CLASSES), draw[1]
        at = slot.long()
        # index_select: it is some times faster than take() or slot[at], on a processor
        other = slot.sub_(at) >= self._keep.index_select(0, at)
        at = torch.where(other, self._alias.index_select(0, at), at)
        # The whole part of a number tells the item, and what is left whether it is accepted. By
        # rounding the former may be the count: then it is whatever lies behind the class.
        place.mul_(self._width.index_select(0, at))
        whole = place.long()
        place.sub_(whole)
        item = self._item.index_select(0, whole.add_(self._start.index_select(0, at)))
        share = self._share.index_select(0, item)
        accepted = place < share
        weight = share.mul_(self._scale.index_select(0, at))
        return item.view(shape), weight.view(shape), accepted.view(shape)

    def _set_scale(self, uncertainty: torch.Tensor, C: float, temperature: float) -> None:
        self._C = C
        if self.spans(C, temperature):
            # 0 .. C in 255 classes; the last is of C and beyond
            self._least = 0.0
            width = C / (_CLASSES - 1)
        else:
            self._least = min(float(uncertainty.min()), C)
            width = _WIDEST * temperature
        self._per_class = 1 / width
        self._step = width / temperature  # difference of exponents between classes
        rejected = -math.expm1(-self._step)  # at most; the mean, if uncertainties are uniform:
        self._accepted = rejected / self._step
        self._rounds = math.ceil(math.log(_NEGLIGIBLE) / math.log(rejected))
        self._tabulated = False

    def _chunks(self, n: int) -> tuple[int, range]:
        """Rows of a chunk of ``n`` items, and where each begins."""
        size = min(n, _ITEMS_AT_ONCE) if self.device.type == "cpu" else n
        return size, range(0, n, size)

    def _weigh(
        self, uncertainty: torch.Tensor, order: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Finds all items' classes, uint8 ``[n]``, and the counts by chunk, ``[chunks, 256]``."""
        n = len(uncertainty)
        size, starts = self._chunks(n)
        number = torch.empty(n, dtype=torch.uint8, device=self.device)
        count = torch.zeros(len(starts), _CLASSES, dtype=torch.int64, device=self.device)
        self._sum = torch.zeros(_CLASSES, dtype=torch.float64, device=self.device)
        share = self._share[:n] if order is None else torch.empty(n, device=self.device)
        # Written into what is there: on a processor, allocations would take most of the time.
        weight = torch.empty(size, dtype=torch.float64, device=self.device)
        for chunk, start in enumerate(starts):
            rows = slice(start, min(start + size, n))
            self._classify(uncertainty[rows], number[rows], share[rows])
            count[chunk] = torch.bincount(number[rows], minlength=_CLASSES)
            double = weight[: rows.stop - start].copy_(share[rows])
            self._sum += torch.bincount(number[rows], double, minlength=_CLASSES)
        if order is not None:
            self._share[order] = share
        return number, count

    def _arrange(
        self, number: torch.Tensor, count: torch.Tensor, order: torch.Tensor | None
    ) -> None:
        """Writes all items into their classes' regions: a counting sort by chunks."""
        n, device = len(number), self.device
        size, starts = self._chunks(n)
        self._place[n if order is None else 0 :] = -1
        before = count.cumsum(0) - count  # items of the class in earlier chunks
        shift = self._start + before - (count.cumsum(1) - count)  # [chunks, 256]
        by_class = torch.empty(size, dtype=torch.uint8, device=device)
        at, item = torch.empty(2, size, dtype=torch.int32, device=device)
        row, place = torch.empty(2, size, dtype=torch.int64, device=device)
        counted = torch.arange(size, device=device)
        for chunk, start in enumerate(starts):
            k = slice(0, min(size, n - start))
            torch.sort(number[start : start + size], stable=True, out=(by_class[k], row[k]))
            torch.index_select(shift[chunk], 0, at[k].copy_(by_class[k]), out=place[k])
            place[k] += counted[k]
            if order is not None:
                row[k] = order[row[k] + start]
                item[k] = row[k]
                self._place.scatter_(0, row[k], at[k].copy_(place[k]))
            else:
                item[k].copy_(row[k]).add_(start)
                self._place[start : start + size].scatter_(0, row[k], at[k].copy_(place[k]))
            self._item.scatter_(0, place[k], item[k])

    def _classify(
        self, uncertainty: torch.Tensor, number: torch.Tensor, share: torch.Tensor
    ) -> None:
        """Writes classes, uint8 ``[k]``, and parts of their greatest weight, float32 ``[k]``."""
        torch.clamp(uncertainty, max=self._C, out=share)
        share.sub_(self._least).mul_(self._per_class)
        whole = share.int().clamp_max_(_CLASSES - 1)
        number.copy_(whole)
        share.sub_(whole).mul_(-self._step).exp_()

    def _tabulate(self) -> None:
        """What a draw looks up for each class."""
        if self._tabulated:
            return
        exponent = torch.arange(_CLASSES, dtype=torch.float64, device=self.device) * -self._step
        first = (self._count > 0).to(torch.uint8).argmax()  # the heaviest class that has items
        bound = (exponent - exponent[first]).exp()
        self._width = self._count.double()
        self._mass = self._width * bound
        self._keep, self._alias = make_alias_table(self._mass)
        total = (bound * self._sum).sum()
        self._scale = (bound * (self._held / total)).float()
        self._tabulated = True


def _enumerate(start: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The places ``start[g] .. start[g] + count[g] - 1`` of all classes ``g``, in order."""
    offset = (start - (count.cumsum(0) - count)).repeat_interleave(count)
    return offset + torch.arange(len(offset), device=start.device)
