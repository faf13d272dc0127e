package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// upstream knows what of it is open, and how late its own timers were: chunks that are late come in bunches.
type upstream struct {
	connections atomic.Int64
	held        atomic.Int64
	holding     sync.Map     // the connections of held streams
	lastLeft    atomic.Int64 // when the last held stream was left, Unix microseconds

	mutex sync.Mutex
	late  []int64 // microseconds
}

func serveUpstream() error {
	server := &upstream{}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%s %s\n", listener.Addr(), control.Addr())
	go func() { _ = http.Serve(control, http.HandlerFunc(server.tell)) }()
	for {
		connection, err := listener.Accept()
		if err != nil {
			return err
		}
		go server.serve(connection)
	}
}

// tell answers `/state`, and forgets the lateness that it has told; `/drop` ends what is still held before that.
func (server *upstream) tell(to http.ResponseWriter, asked *http.Request) {
	if asked.URL.Path == "/drop" {
		server.holding.Range(func(connection, _ any) bool {
			connection.(net.Conn).Close()
			return true
		})
	}
	server.mutex.Lock()
	late := server.late
	server.late = nil
	server.mutex.Unlock()
	_ = json.NewEncoder(to).Encode(map[string]any{
		"connections": server.connections.Load(), "held": server.held.Load(),
		"last_left_us": server.lastLeft.Load(), "late_us": summed(late),
	})
}

func (server *upstream) serve(connection net.Conn) {
	server.connections.Add(1)
	defer func() {
		connection.Close()
		server.connections.Add(-1)
	}()
	reader := bufio.NewReader(connection)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil || !server.answer(connection, reader, request, body) {
			return
		}
		if request.Close {
			return
		}
	}
}

// answer says whether the connection can be used again.
func (server *upstream) answer(connection net.Conn, reader *bufio.Reader, request *http.Request, body []byte) bool {
	wanted := readAsk(body)
	var err error
	switch {
	case request.Method != http.MethodPost:
		_, err = connection.Write(response("application/json", `{"status":"ok","data":[],"model_path":"gpt-4o-mini"}`))
	case !wanted.stream:
		_, err = connection.Write(response("application/json", fmt.Sprintf(plainForm, mark())))
	case wanted.hold:
		server.hold(connection, reader)
		return false
	case wanted.gap == 0:
		err = burst(connection, wanted)
	default:
		err = server.pace(connection, wanted)
	}
	return err == nil
}

// hold sends one chunk, and waits for the client to leave.
func (server *upstream) hold(connection net.Conn, reader *bufio.Reader) {
	server.held.Add(1)
	server.holding.Store(connection, nil)
	defer func() {
		server.holding.Delete(connection)
		server.lastLeft.Store(time.Now().UnixMicro())
		server.held.Add(-1)
	}()
	if _, err := connection.Write(framed(framed([]byte(streamHead), roleEvent()), contentEvent())); err == nil {
		_, _ = reader.Peek(1)
	}
}

// burst sends everything at once, in as few writes as the kernel takes.
func burst(connection net.Conn, wanted ask) error {
	out := framed([]byte(streamHead), roleEvent())
	for i := 0; i < wanted.chunks; i++ {
		out = framed(out, contentEvent())
	}
	_, err := connection.Write(appendEnd(out, wanted))
	return err
}

// pace sends one chunk in each gap, by the clock: a late chunk does not delay the next.
func (server *upstream) pace(connection net.Conn, wanted ask) error {
	began := time.Now()
	out := framed([]byte(streamHead), roleEvent())
	late := make([]int64, 0, wanted.chunks)
	for i := 0; i < wanted.chunks; i++ {
		due := began.Add(time.Duration(i) * wanted.gap)
		time.Sleep(time.Until(due))
		late = append(late, time.Since(due).Microseconds())
		out = framed(out, contentEvent())
		if i == wanted.chunks-1 {
			out = appendEnd(out, wanted)
		}
		if _, err := connection.Write(out); err != nil {
			return err
		}
		out = out[:0]
	}
	server.mutex.Lock()
	server.late = append(server.late, late...)
	server.mutex.Unlock()
	return nil
}
