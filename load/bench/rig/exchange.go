package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	markLength = 17 // "@" and sixteen digits
	timeout    = 60 * time.Second

	firstTokenTimeout = 20 * time.Second // of a stream that is held
)

// client is one connection, made again where the server closed it.
type client struct {
	address string
	conn    net.Conn
	reader  *bufio.Reader
	buffer  []byte
}

// seen is what one answer held.
type seen struct {
	marks   int
	ended   bool
	firstAt time.Time
	ages    []int64 // of each mark when it was read, microseconds
}

func newClient(address string) *client {
	return &client{address: address, buffer: make([]byte, 16<<10)}
}

func (c *client) connect() error {
	if c.conn != nil {
		return nil
	}
	conn, err := net.DialTimeout("tcp", c.address, timeout)
	if err != nil {
		return err
	}
	c.conn, c.reader = conn, bufio.NewReaderSize(conn, 4<<10)
	return nil
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

// open sends a request, and returns its answer's head.
func (c *client) open(request []byte, timeout time.Duration) (*http.Response, error) {
	if err := c.connect(); err != nil {
		return nil, err
	}
	_ = c.conn.SetDeadline(time.Now().Add(timeout))
	if _, err := c.conn.Write(request); err != nil {
		return nil, err
	}
	answer, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 300))
		return nil, fmt.Errorf("status %d: %s", answer.StatusCode, text)
	}
	return answer, nil
}

// exchange sends a request and reads its whole answer; after any failure the connection is closed.
func (c *client) exchange(request []byte, wanted int, stream bool) (found seen, err error) {
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	answer, err := c.open(request, timeout)
	if err != nil {
		return found, err
	}
	kept := 0
	for err == nil {
		var n int
		n, err = answer.Body.Read(c.buffer[kept:])
		kept = found.scan(c.buffer[:kept+n])
	}
	if err != io.EOF {
		return found, err
	}
	if found.marks != wanted || stream && !found.ended {
		return found, fmt.Errorf("%d of %d tokens, ended: %t", found.marks, wanted, found.ended)
	}
	if answer.Close {
		c.close()
	}
	return found, nil
}

// scan counts the marks in what was read; what may be the beginning of one is moved to the front, and its length returned.
func (found *seen) scan(data []byte) int {
	now := time.Now()
	at := 0
	for {
		next := bytes.IndexByte(data[at:], '@')
		if next < 0 || at+next+markLength > len(data) {
			break
		}
		at += next
		if sent, ok := digits(data[at+1 : at+markLength]); ok {
			if found.marks == 0 {
				found.firstAt = now
			}
			found.marks++
			found.ages = append(found.ages, now.UnixMicro()-sent)
			at += markLength
		} else {
			at++
		}
	}
	if bytes.Contains(data[at:], []byte("[DONE]")) {
		found.ended = true
	}
	rest := data[max(at, len(data)-markLength+1):]
	copy(data, rest)
	return len(rest)
}

func digits(text []byte) (int64, bool) {
	var number int64
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		number = number*10 + int64(digit-'0')
	}
	return number, true
}
