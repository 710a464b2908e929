"""The proxy does each fault as it says, and counts it: what the fault tests stand on."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.faults.proxy import Cut, Delay, Drip, Fault, Hold, Lose, Proxy, proxy_to
from tests.waiting import until

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """Before a server that says back what it hears."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1000):
            writer.write(piece)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, proxy_to(server.sockets[0].getsockname()[1]) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"before")
    assert await reader.readexactly(6) == b"before"
    yield reader, writer
    writer.close()


async def test_lost_bytes_never_arrive_and_their_connection_ends_when_the_network_is_back(
    proxy: Proxy, client: Client
) -> None:
    reader, writer = client
    proxy.up.become(Lose())

    writer.write(b"lost")
    await until(lambda: proxy.up.lost == 4)
    proxy.heal()

    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert (proxy.resets, proxy.down.passed) == (1, 6)


@pytest.mark.parametrize(("fault", "count"), [(Hold(), "held"), (Delay(60), "delayed"), (Drip(20), "dripped")])
async def test_late_bytes_arrive_whole_once_the_fault_is_over(
    proxy: Proxy, client: Client, fault: Fault, count: str
) -> None:
    reader, writer = client
    proxy.down.become(fault)

    writer.write(b"late" * 100)
    await until(lambda: getattr(proxy.down, count) > 0)
    proxy.heal()

    assert await reader.readexactly(400) == b"late" * 100
    assert proxy.resets == 0


async def test_a_connection_is_cut_after_so_many_bytes(proxy: Proxy, client: Client) -> None:
    reader, writer = client
    proxy.down.become(Cut(after=5))

    writer.write(b"abc")
    assert await reader.readexactly(3) == b"abc"
    writer.write(b"defgh")

    with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
        await reader.readexactly(5)
    assert (proxy.resets, proxy.down.passed) == (1, 11)


async def test_a_side_does_not_learn_that_the_other_has_closed(proxy: Proxy, client: Client) -> None:
    reader, writer = client
    proxy.half_open = True

    writer.write_eof()
    await until(lambda: proxy.closes_hidden == 1)
    assert proxy.open == 1
    proxy.heal()

    assert await reader.read() == b""


async def test_whoever_connects_is_refused_and_whoever_is_there_is_reset(proxy: Proxy, client: Client) -> None:
    proxy.refuse = True

    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises(ConnectionResetError):
        await reader.read()
    assert proxy.reset() == 1
    with pytest.raises(ConnectionResetError):
        await client[0].read()

    assert (proxy.refused, proxy.resets, proxy.open) == (1, 1, 0)
    writer.close()


async def test_a_url_through_the_proxy_keeps_all_but_the_address(proxy: Proxy) -> None:
    assert proxy.url("postgresql://ann:word@db:5432/own?x=1") == f"postgresql://ann:word@127.0.0.1:{proxy.port}/own?x=1"
