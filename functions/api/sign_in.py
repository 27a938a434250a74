"""Humans sign in for the portals: a token for an hour, fresh for five minutes after the password was given."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, Field

from functions.api.audit import concerns
from functions.api.auth import caller, fresh, password_matches
from functions.api.desk import Desk
from functions.api.history import write_of_account
from functions.api.wiring import Wiring
from functions.http import ProblemError, Routes
from shared.access import people
from shared.access.model import ApiKey, Scope
from shared.access.people import Person
from shared.access.table import get_account
from shared.kernel.ids import AccountId
from shared.runtime.clock import now_ms

Email = Annotated[str, Field(min_length=3, max_length=254, pattern=r"^[^@\s#]+@[^@\s#]+$")]
Password = Annotated[str, Field(min_length=people.PASSWORD_MIN_CHARS, max_length=people.PASSWORD_MAX_CHARS)]


class SignInBody(BaseModel):
    """`POST /v1/auth/sign-in`."""

    email: Annotated[str, Field(max_length=254)]
    password: Annotated[str, Field(max_length=people.PASSWORD_MAX_CHARS)]


class PersonBody(BaseModel):
    """`POST /v1/admin/accounts/{id}/people`."""

    email: Email
    password: Password


class PasswordBody(BaseModel):
    """`POST /v1/auth/password`."""

    password: Annotated[str, Field(max_length=people.PASSWORD_MAX_CHARS)]
    newPassword: Password


class SignIn(Desk):
    """Routes' work."""

    def person(self, request: Request, email: str, password: str) -> Person:
        """Whoever has this address and this password; 401 for both faults, 429 for too many tries."""
        found = password_matches(self.w, request, email, password)
        if found is None:
            raise ProblemError(401, "SIGN_IN_FAILED", "wrong e-mail address or password")
        return found

    def token(self, person: Person) -> dict[str, Any]:
        """A fresh token."""
        now = now_ms()
        private = self.w.settings.jwt_private_key.get_secret_value()
        return {
            "token": people.issue(person, private, now),
            "accountId": person.account_id,
            "expiresAt": now + people.TOKEN_LIFE_S * 1000,
            "freshUntil": now + people.FRESH_MS,
        }

    def add(self, request: Request, account_id: str, body: PersonBody) -> dict[str, Any]:
        """Somebody for an account; admins do this."""
        by = fresh(self.w, request, caller(self.w, request, Scope.ADMIN))
        if self.w.dynamo.run(get_account(self.table, AccountId(account_id))) is None:
            raise ProblemError(404, "NOT_FOUND", "there is no such account")
        email = body.email.lower()
        person = Person(email, AccountId(account_id), people.hash_password(body.password), 0, now_ms())
        items, facts = [people.person_item(self.table, person)], {"account": account_id, "email": email}
        if write_of_account(self.w, request, by, "person_create", items, **facts) is not None:
            raise ProblemError(409, "ADDRESS_TAKEN", "somebody has this e-mail address already")
        return {"email": email, "accountId": account_id}

    def change_password(self, request: Request, by: ApiKey, body: PasswordBody) -> dict[str, Any]:
        """Another password; every token so far ends."""
        person = self.person(request, by.person, body.password)
        hashed = people.hash_password(body.newPassword)
        items = [people.password_item(self.table, person, hashed)]
        if write_of_account(self.w, request, by, "password_change", items) is not None:
            raise ProblemError(409, "CHANGED_MEANWHILE", "the password changed in the same moment")
        return self.token(replace(person, password_hash=hashed, generation=person.generation + 1))


def router(wiring: Callable[[], Wiring]) -> Routes:
    """Routes of signing in."""
    routes = Routes()
    work = SignIn(wiring)

    @routes.post("/v1/auth/sign-in")
    def sign_in(request: Request, body: SignInBody) -> dict[str, Any]:
        found = work.person(request, body.email, body.password)
        concerns(request, f"acct#{found.account_id}", found.email, "password")
        return work.token(found)

    @routes.post("/v1/auth/password")
    def password(request: Request, body: PasswordBody) -> dict[str, Any]:
        by = caller(work.w, request, None)
        if not by.person:
            raise ProblemError(403, "HUMANS_ONLY", "an API key has no password")
        return work.change_password(request, by, body)

    routes.post("/v1/admin/accounts/{account_id}/people")(work.add)
    return routes
