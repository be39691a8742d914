"""RFC 2217 on loopback: the cable between a program on this machine and the virtual board.

It owns the listening socket, the one connection, and the two lines and the speed that the program
set. It never listens anywhere but on loopback, never serves two programs at once, and takes any
bytes whatever: what is no RFC 2217 is noise on the line. What the program does not read in time is
lost, as on a UART.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serial import rfc2217

from outpost_tools.errors import OutpostError
from outpost_tools.serialport.machine import CONSOLE_BAUD, Machine

IN_USE = b"The port is in use by another program: close that one first.\r\n"
HANDOVER_S = 5.0  # how long a new program waits for the end of one that has hung up
REFUSED_S = 0.3  # and for one that has not
OUTPUT_MAX_BYTES = 4 << 20
OPTION_MAX_BYTES = 256
IAC, DOUBLED = b"\xff", b"\xff\xff"


class SerialPort:
    """`with SerialPort(machine) as port: ... port.url` gives rfc2217://127.0.0.1:PORT.

    comes_back  whether the port is there again at once after the cable or the power went; False
                leaves it refusing every program until `plug_in`
    """

    def __init__(
        self,
        machine: Machine,
        port: int = 0,
        *,
        on_event: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.machine = machine
        self.comes_back = True
        self._wanted = port
        self._say = on_event
        self._reserved: socket.socket | None = None  # keeps the number while nobody listens
        self._listener: socket.socket | None = None
        self._client: _Client | None = None
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._pull_after: int | None = None
        machine.on_output = self._output
        machine.on_power = self._power

    @property
    def address(self) -> tuple[str, int]:
        assert self._reserved is not None, "the port is not open"
        return self._reserved.getsockname()

    @property
    def url(self) -> str:
        return "rfc2217://{}:{}".format(*self.address)

    def start(self) -> "SerialPort":
        try:
            self._reserved = _bound(self._wanted)
            self.plug_in()
        except OSError as why:
            raise OutpostError(
                f"Port {self._wanted} cannot be listened on ({why.strerror}): give another, or 0."
            ) from None
        self.machine.power_on()
        return self

    def stop(self) -> None:
        self._stopping.set()
        self._unplug()
        client = self._client
        self.pull_cable()
        if client is not None:
            client.gone.wait(HANDOVER_S)
        self.machine.power_off()
        if self._reserved is not None:
            self._reserved.close()

    def __enter__(self) -> "SerialPort":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- faults

    def pull_cable(self, after_bytes: int | None = None) -> None:
        """Break the connection, now or once so many bytes more have come from the program."""
        with self._lock:
            self._pull_after = after_bytes
            client = self._client
        if after_bytes is not None:
            return
        if not self.comes_back:
            self._unplug()
        if client is not None:
            client.hang_up()

    def plug_in(self) -> None:
        """Be there (again). The next program that opens the port gives the board its power."""
        if self._listener is None:
            self._listener = _bound(self.address[1])
            self._listener.listen()
            threading.Thread(
                target=self._accept, args=(self._listener,), name="serial port", daemon=True
            ).start()

    def _unplug(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()

    def _count(self, data: bytes) -> bytes:
        """What still comes through before the cable is pulled."""
        with self._lock:
            if self._pull_after is None:
                return data
            through, self._pull_after = data[: self._pull_after], self._pull_after - len(data)
            pulled = self._pull_after <= 0
        if pulled:
            self._say("the cable is pulled")
            self.pull_cable()
        return through

    def _power(self, on: bool) -> None:
        self._say("the board has power" if on else "the power is gone")
        if not on and not self._stopping.is_set():
            self.pull_cable()

    # ---- connections

    def _output(self, data: bytes) -> None:
        client = self._client
        if client is not None:
            client.send(data.replace(IAC, DOUBLED))

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            busy = self._client
            if busy is not None and not busy.gone.wait(HANDOVER_S if busy.ending else REFUSED_S):
                self._say("a second program was refused: the port is in use")
                _refuse(connection, IN_USE)
                continue
            self.machine.power_on()
            client = _Client(connection, self.machine)
            with self._lock:
                self._client = client
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: "_Client") -> None:
        self._say("a program has opened the port")
        try:
            client.run(self._count)
        finally:
            client.close()
            # A port that is closed drops both lines, at the same time.
            self.machine.lines(False, False)
            with self._lock:
                self._client = None
            self._say("the port is closed")
            client.gone.set()


class _Client:
    """One connection. It has what pyserial's PortManager takes for a serial port: itself."""

    cts = dsr = cd = True
    ri = False
    bytesize, parity, stopbits = 8, "N", 1
    xonxoff = rtscts = break_condition = False

    def __init__(self, connection: socket.socket, machine: Machine) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._machine = machine
        self.gone = threading.Event()  # and its lines are dropped
        self.ending = False
        self._closed = False
        self.baudrate = CONSOLE_BAUD
        self._dtr = self._rts = False
        self._came = bytearray()
        self._out = bytearray()
        self._changed = threading.Condition()
        threading.Thread(target=self._write_out, name="port output", daemon=True).start()
        self._manager = _Manager(self, self)

    # ---- what the program sets

    @property
    def dtr(self) -> bool:
        return self._dtr

    @dtr.setter
    def dtr(self, on: bool) -> None:
        self._set(on, self._rts)

    @property
    def rts(self) -> bool:
        return self._rts

    @rts.setter
    def rts(self, on: bool) -> None:
        self._set(self._dtr, on)

    def _set(self, dtr: bool, rts: bool) -> None:
        self._pass_on()
        self._dtr, self._rts = dtr, rts
        self._machine.lines(dtr, rts)

    def reset_input_buffer(self) -> None:
        """What the board has said and the program not yet heard, it does not want to hear."""
        with self._changed:
            self._out.clear()

    def reset_output_buffer(self) -> None:
        pass  # what the program sent has long reached the board

    # ---- what goes through

    def run(self, count: Callable[[bytes], bytes]) -> None:
        while True:
            try:
                data = self._socket.recv(4096)
            except OSError:
                return
            if not data:
                self.ending = True
                return
            self._take(count(data))

    def _take(self, data: bytes) -> None:
        try:
            for byte in self._manager.filter(data):
                self._came += byte
        except (TypeError, ValueError, KeyError):
            self._manager.forget()  # no RFC 2217: noise, and the rest of this piece with it
        self._manager.bound()
        self._pass_on()

    def _pass_on(self) -> None:
        """What came before a change of the lines reaches the board before it."""
        if self._came:
            data, self._came = bytes(self._came), bytearray()
            self._machine.receive(data, self.baudrate)

    def write(self, data: bytes) -> None:
        """For PortManager: answers of the protocol."""
        self.send(data)

    def send(self, data: bytes) -> None:
        with self._changed:
            if len(self._out) + len(data) <= OUTPUT_MAX_BYTES:
                self._out += data
                self._changed.notify()

    def _write_out(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._out or self._closed)
                if self._closed:
                    return
                data, self._out = bytes(self._out), bytearray()
            try:
                self._socket.sendall(data)
            except OSError:
                return

    def hang_up(self) -> None:
        """Ends `run`, from any thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.hang_up()
        self._socket.close()
        with self._changed:
            self._closed = True
            self._changed.notify()


class _Manager(rfc2217.PortManager):
    """pyserial's own server side, made to bear what no client of its own sends."""

    def _telnet_process_subnegotiation(self, suboption: bytes) -> None:
        try:
            super()._telnet_process_subnegotiation(suboption)
        except Exception:  # struct.error, a speed that is none, an empty mask: all noise
            self.forget()

    def forget(self) -> None:
        self.mode = rfc2217.M_NORMAL
        self.suboption = None

    def bound(self) -> None:
        if self.suboption is not None and len(self.suboption) > OPTION_MAX_BYTES:
            self.forget()


def _bound(port: int) -> socket.socket:
    """A socket on loopback that has the port and does not listen yet."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
    except OSError:
        made.close()
        raise
    return made


def _refuse(connection: socket.socket, sentence: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.settimeout(1)
        connection.sendall(sentence)
        connection.shutdown(socket.SHUT_WR)
    connection.close()


@contextmanager
def served(flash: Path, leg: str = "outpost64", **options: Any) -> Iterator[SerialPort]:
    """A board with this flash on a port, powered, until the block ends."""
    with SerialPort(Machine(flash, leg, **options)) as port:
        yield port
