"""What a recovery has to bring because a dirty map says so: asked of an order, within the rules of a set.

Pure. The map speaks of the copy at the place of its HOLE in the stream: ask when the stream is there.
"""

from collections.abc import Callable, Iterable

from replicator.mirror.order import Order, is_below_or_equal, parent_of
from replicator.mirror.patches import TO_END
from replicator.ops import NO_IDENTITY, Identity
from replicator.queue import regions
from replicator.queue.dirty import Dirty, Scope
from replicator.repset import Filter

_OF_DIRECTORIES = Scope.NAMES | Scope.FILES | Scope.DIRECTORY


def require_dirty(entries: Iterable[Dirty], rules: Filter, order: Order, *, in_place: bool = True) -> None:
    """Have all of it brought that belongs to the set.

    `in_place` False: what the target has may differ elsewhere, too, so files are brought whole.
    """
    for entry in entries:
        if entry.scope & Scope.LINKED:
            _require_linked(entry, rules, order, in_place)
        elif entry.scope & Scope.TREE:
            _require_tree(entry.path, rules, order)
        elif entry.scope & _OF_DIRECTORIES:
            _require_directory(entry, rules, order)
        elif rules.includes(entry.path):
            _require_file(entry, order, in_place)


def require_foreign(entries: Iterable[Dirty], rules: Filter, order: Order, *, remove: bool) -> None:
    """Have all of it brought that others have changed on a target. `remove`: names that the source does not
    have are removed there; else they stay, and only what the source has is brought.
    """
    for entry in entries:
        if remove or not entry.scope & _OF_DIRECTORIES:
            require_dirty([entry], rules, order, in_place=False)
        elif entry.scope & Scope.FILES:
            _require_tree(entry.path, rules, order)
        elif entry.scope & Scope.DIRECTORY and rules.may_contain(entry.path):
            order.require(entry.path)  # its attributes: a list of names would remove some


def require_tail(
    entries: Iterable[Dirty],
    rules: Filter,
    order: Order,
    file_at: Callable[[bytes], tuple[Identity, int] | None],
) -> None:
    """Have all of it brought that the target wrote while it was the source, and the source never had: names
    that the source does not have go. Files that kept their names are patched where they differ.

    The map knows files by identities that mean nothing here. `file_at`: the regular file that has a name in
    the source now, and how many names it has.
    """
    for entry in entries:
        if entry.scope & (Scope.TREE | Scope.WHOLE | _OF_DIRECTORIES):
            require_dirty([entry], rules, order, in_place=False)
            continue
        differs = bool(entry.regions) or bool(entry.scope & ~Scope.LINKED)
        if not differs:
            continue  # it is for a name that was made: that one is whole
        known = file_at(entry.path) if rules.includes(entry.path) else None
        if known is not None:
            order.require_regions(entry.path, known[0], _spans(entry), multilink=known[1] > 1)
        elif entry.scope & Scope.LINKED:  # its other names may be anywhere
            for root in rules.roots:
                order.require_replaced(root)
        elif rules.includes(entry.path):  # it is something else, or gone
            _require_file(entry, order, in_place=False)


def concerns(entries: Iterable[Dirty], rules: Filter) -> bool:
    """Whether any of it has to be brought."""
    order = Order()
    require_dirty(entries, rules, order)
    return not order.everything_read()


def _require_linked(entry: Dirty, rules: Filter, order: Order, in_place: bool) -> None:
    differs = bool(entry.regions) or entry.scope != Scope.LINKED
    if in_place and rules.includes(entry.path):
        # Where nothing differs, it only has to be known when its new name is met.
        order.require_regions(entry.path, entry.identity, _spans(entry), multilink=differs)
    elif differs:  # its other names may be anywhere
        order.require_unnamed(entry.identity)


def _require_tree(path: bytes, rules: Filter, order: Order) -> None:
    roots = [root for root in rules.roots if is_below_or_equal(root, path)]
    if not roots and rules.may_contain(path):
        roots = [path]
    for root in roots:
        order.require_replaced(root)


def _require_directory(entry: Dirty, rules: Filter, order: Order) -> None:
    path, scope = entry.path, entry.scope
    if any(is_below_or_equal(path, root) for root in rules.roots):
        if rules.may_contain(path):
            if scope & Scope.FILES:
                order.require_files(path)
            else:  # it brings the directory's attributes as well
                order.require_names(path)
    elif scope & Scope.FILES:  # names beside a root are no concern of the set, but a root may be a file
        for root in rules.roots:
            if parent_of(root) == path:
                order.require_replaced(root)


def _require_file(entry: Dirty, order: Order, in_place: bool) -> None:
    content = bool(entry.regions) or bool(entry.scope & Scope.WHOLE)
    if in_place and not entry.scope & Scope.WHOLE and entry.identity != NO_IDENTITY:
        order.require_regions(entry.path, entry.identity, _spans(entry), multilink=False)
    elif content:
        order.require_replaced(entry.path)
    else:
        order.require(entry.path)


def _spans(entry: Dirty) -> list[tuple[int, int]]:
    """(offset, length) of what differs in a file."""
    if entry.scope & Scope.WHOLE:
        return [(0, TO_END)]
    return [(start, TO_END if end == regions.END else end - start) for start, end in entry.regions]
