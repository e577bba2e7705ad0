"""The use cases of accounts: who is in, what may be used, what it costs."""

from services.accounts.handlers.billing import charge_plan, create_invoice, issue_invoice
from services.accounts.handlers.bootstrap import bootstrap_workspace
from services.accounts.handlers.keys import authenticate, create_api_key, delete_api_key, is_confined
from services.accounts.handlers.members import delete_member, set_member
from services.accounts.handlers.plans import set_plan
from services.accounts.handlers.quotas import quotas, release_quota, reserve_quota, store_anyway
from services.accounts.handlers.usage import record_listing_rows, record_use, settle_storage, unsettled_storage
from services.accounts.handlers.workspaces import create_workspace, get_workspace, update_workspace

__all__ = [
    "authenticate",
    "bootstrap_workspace",
    "charge_plan",
    "create_api_key",
    "create_invoice",
    "create_workspace",
    "delete_api_key",
    "delete_member",
    "get_workspace",
    "is_confined",
    "issue_invoice",
    "quotas",
    "record_listing_rows",
    "record_use",
    "release_quota",
    "reserve_quota",
    "set_member",
    "set_plan",
    "settle_storage",
    "store_anyway",
    "unsettled_storage",
    "update_workspace",
]
