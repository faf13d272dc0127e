"""Without authentication, a page of another site must not use the service through the browser of whoever runs it."""

import pytest

from tests.support.fake_app import ALICE, fake_app, keyed_auth

FOREIGN = {"origin": "https://evil.example"}


async def test_a_foreign_page_is_refused_where_authentication_is_off() -> None:
    async with fake_app() as api:
        answers = [
            await api.client.post("/generate", json={"prompt": "x"}, headers=FOREIGN),
            await api.client.get("/stream", params={"prompt": "x"}, headers=FOREIGN),
            await api.client.post("/tickets", headers=FOREIGN),
            await api.client.post("/generate", json={"prompt": "x"}, headers={"origin": "null"}),
        ]
        assert {answer.status_code for answer in answers} == {403}
        assert "cors.origins" in answers[0].json()["detail"]
        assert not api.provider.calls


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_what_a_foreign_page_includes_is_refused_though_it_has_no_origin(site: str) -> None:
    async with fake_app() as api:
        answer = await api.client.get("/stream", params={"prompt": "x"}, headers={"sec-fetch-site": site})
        assert answer.status_code == 403
        assert not api.provider.calls


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "[::", "127.0.0.1.evil.example"])
async def test_a_name_that_an_attacker_points_at_this_machine_is_refused(host: str) -> None:
    async with fake_app() as api:
        headers = {"host": host, "origin": f"http://{host}"}
        answer = await api.client.post("/generate", json={"prompt": "x"}, headers=headers)
        assert answer.status_code == 403
        assert "auth.keys" in answer.json()["detail"]


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "app.localhost"])
async def test_this_machines_own_names_are_let_in(host: str) -> None:
    async with fake_app() as api:
        answer = await api.client.post("/generate", json={"prompt": "x"}, headers={"host": host})
        assert answer.status_code == 200


async def test_our_own_page_and_programs_are_let_in() -> None:
    async with fake_app() as api:
        own = {"origin": str(api.client.base_url).rstrip("/")}
        for headers in (own, {}):
            answer = await api.client.post("/generate", json={"prompt": "x"}, headers=headers)
            assert answer.status_code == 200


async def test_a_listed_page_is_let_in() -> None:
    async with fake_app(cors={"origins": [FOREIGN["origin"]]}) as api:
        answer = await api.client.post("/generate", json={"prompt": "x"}, headers=FOREIGN)
        assert answer.status_code == 200


async def test_a_key_lets_a_foreign_page_in_since_it_cannot_be_had_by_accident() -> None:
    async with fake_app(auth=keyed_auth()) as api:
        headers = {**FOREIGN, "authorization": f"Bearer {ALICE}"}
        assert (await api.client.post("/generate", json={"prompt": "x"}, headers=headers)).status_code == 200


@pytest.mark.parametrize("authorization", ["Bearer", "Basic abc", "Bearer whatever-an-sdk-sends"])
async def test_whatever_credential_is_shown_does_not_matter_where_authentication_is_off(authorization: str) -> None:
    async with fake_app() as api:
        headers = {"authorization": authorization}
        assert (await api.client.post("/generate", json={"prompt": "x"}, headers=headers)).status_code == 200
