"""Who may do what to whom: roles in order, and what the first workspace's owners are."""

from enum import IntEnum

from libs.errors import Conflict, Forbidden, Invalid, Violation


class Role(IntEnum):
    """As in common.v1; each includes the ones before it."""

    VIEWER = 1
    EDITOR = 2
    ADMIN = 3
    OWNER = 4
    OPERATOR = 5

    @property
    def word(self) -> str:
        return self.name.lower()


GIVEN = (Role.VIEWER, Role.EDITOR, Role.ADMIN, Role.OWNER)


def effective(role: int, *, first: bool) -> Role:
    """What a stored role means: the owners of the first workspace run the platform."""
    return Role.OPERATOR if first and role >= Role.OWNER else Role(role)


def stored(role: int, *, first: bool) -> Role:
    """The role to store for one that was asked for: "operator" is what the first workspace calls its owners, and nobody else's."""
    if role == Role.OPERATOR and not first:
        options = tuple(each.word for each in GIVEN)
        raise Invalid.of([Violation("role", f"must be one of {', '.join(options)}: only the first workspace has operators", options)])
    return min(Role(role), Role.OWNER)


def may_give(own: int, role: int, what: str) -> None:
    """Raises Forbidden where `role` is above one's own."""
    if role > own:
        raise Forbidden(f"{what} with the role {Role(role).word} needs that role or a higher one; yours is {Role(own).word}")


def keeps_an_owner(owners: int, before: int | None, after: int | None) -> None:
    """Raises Conflict where a change from role `before` to `after` (None: no member) takes a workspace's last owner."""
    if before == Role.OWNER and after != Role.OWNER and owners <= 1:
        raise Conflict("this is the workspace's last owner; make another member an owner first")
