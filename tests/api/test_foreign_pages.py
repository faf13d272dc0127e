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
