package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// command is one line of the standard input.
type command struct {
	Do       string            `json:"do"` // closed, open, hold or leave
	Address  string            `json:"address"`
	Path     string            `json:"path"`
	Headers  map[string]string `json:"headers"`
	Body     string            `json:"body"`
	Chunks   int               `json:"chunks"`
	Stream   bool              `json:"stream"`
	Workers  int               `json:"workers"`
	Seconds  float64           `json:"seconds"`
	SpreadUs int               `json:"spread_us"` // workers begin within so much time, so that their chunks come one by one
	Rate     float64           `json:"rate"`
	Count    int               `json:"count"`
}

// report is the answer to a command.
type report struct {
	Requests int            `json:"requests"`
	Failed   int            `json:"failed"`
	Failures map[string]int `json:"failures"`
	Seconds  float64        `json:"seconds"`
	First    summary        `json:"first_us"` // from the intended send to the first token
	Total    summary        `json:"total_us"`
	Age      summary        `json:"age_us"` // of tokens, when they were read
	Lag      summary        `json:"lag_us"` // from the intended send to the send
	CPU      int64          `json:"cpu_us"` // of this process
	LeftAt   int64          `json:"left_at_us"`
}

type crew struct {
	held  []*client
	mutex sync.Mutex
	first []int64
	total []int64
	ages  []int64
	lag   []int64
	done  report
}

func serveCommands() error {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	workers := &crew{}
	for lines.Scan() {
		var wanted command
		if err := json.Unmarshal(lines.Bytes(), &wanted); err != nil {
			return err
		}
		if err := out.Encode(workers.run(&wanted)); err != nil {
			return err
		}
	}
	return lines.Err()
}

func (c *crew) run(wanted *command) report {
	c.first, c.total, c.ages, c.lag = nil, nil, nil, nil
	c.done = report{Failures: map[string]int{}}
	cpu, began := cpuMicros(), time.Now()
	switch wanted.Do {
	case "closed":
		c.closed(wanted)
	case "open":
		c.open(wanted)
	case "hold":
		c.hold(wanted)
	case "leave":
		c.leave()
	}
	c.done.Seconds = time.Since(began).Seconds()
	c.done.CPU = cpuMicros() - cpu
	c.done.First, c.done.Total, c.done.Age, c.done.Lag = summed(c.first), summed(c.total), summed(c.ages), summed(c.lag)
	return c.done
}

func (wanted *command) request() []byte {
	var text strings.Builder
	fmt.Fprintf(&text, "POST %s HTTP/1.1\r\nhost: %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n",
		wanted.Path, wanted.Address, len(wanted.Body))
	for name, value := range wanted.Headers {
		fmt.Fprintf(&text, "%s: %s\r\n", name, value)
	}
	return []byte(text.String() + "\r\n" + wanted.Body)
}

// closed keeps so many requests open until the time is up, and finishes those that run: a window holds whole requests.
func (c *crew) closed(wanted *command) {
	request := wanted.request()
	until := time.Now().Add(time.Duration(wanted.Seconds * float64(time.Second)))
	var group sync.WaitGroup
	for i := 0; i < wanted.Workers; i++ {
		group.Add(1)
		go func(delay time.Duration) {
			defer group.Done()
			time.Sleep(delay)
			connection := newClient(wanted.Address)
			defer connection.close()
			for first := true; first || time.Now().Before(until); first = false {
				c.once(connection, request, wanted, time.Now())
			}
		}(time.Duration(wanted.SpreadUs) * time.Microsecond * time.Duration(i) / time.Duration(wanted.Workers))
	}
	group.Wait()
}

// open sends at times of a Poisson process, whatever became of the requests before.
func (c *crew) open(wanted *command) {
	request := wanted.request()
	random := rand.New(rand.NewSource(1))
	idle := make(chan *client, 1<<14)
	due := time.Now()
	until := due.Add(time.Duration(wanted.Seconds * float64(time.Second)))
	var group sync.WaitGroup
	for {
		due = due.Add(time.Duration(random.ExpFloat64() / wanted.Rate * float64(time.Second)))
		if due.After(until) {
			break
		}
		time.Sleep(time.Until(due))
		group.Add(1)
		go func(intended time.Time) {
			defer group.Done()
			var connection *client
			select {
			case connection = <-idle:
			default:
				connection = newClient(wanted.Address)
			}
			c.once(connection, request, wanted, intended)
			idle <- connection
		}(due)
	}
	group.Wait()
	close(idle)
	for connection := range idle {
		connection.close()
	}
}

// hold opens so many more streams, and returns when each has had its first token.
func (c *crew) hold(wanted *command) {
	request := wanted.request()
	next := make(chan struct{}, wanted.Count)
	for i := 0; i < wanted.Count; i++ {
		next <- struct{}{}
	}
	close(next)
	var group sync.WaitGroup
	for i := 0; i < wanted.Workers; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for range next {
				if c.hasFailed() {
					return
				}
				connection := &client{address: wanted.Address}
				err := connection.firstToken(request)
				c.mutex.Lock()
				c.count(err)
				c.held = append(c.held, connection)
				c.mutex.Unlock()
			}
		}()
	}
	group.Wait()
}

// hasFailed tells the others to give up: a target that can bear no more streams would let each of them time out.
func (c *crew) hasFailed() bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.done.Failed > 0
}

func (c *client) firstToken(request []byte) error {
	answer, err := c.open(request, firstTokenTimeout)
	if err != nil {
		return err
	}
	c.buffer = make([]byte, 1<<10)
	var found seen
	for kept := 0; found.marks == 0 && err == nil; {
		var n int
		n, err = answer.Body.Read(c.buffer[kept:])
		kept = found.scan(c.buffer[:kept+n])
	}
	return err
}

func (c *crew) leave() {
	c.done.LeftAt = time.Now().UnixMicro()
	for _, connection := range c.held {
		connection.close()
	}
	c.done.Requests = len(c.held)
	c.held = nil
}

func (c *crew) once(connection *client, request []byte, wanted *command, intended time.Time) {
	sent := time.Now()
	found, err := connection.exchange(request, wanted.Chunks, wanted.Stream)
	ended := time.Now()
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.count(err)
	if err != nil {
		return
	}
	c.lag = append(c.lag, sent.Sub(intended).Microseconds())
	c.first = append(c.first, found.firstAt.Sub(intended).Microseconds())
	c.total = append(c.total, ended.Sub(intended).Microseconds())
	c.ages = append(c.ages, found.ages...)
}

func (c *crew) count(err error) {
	c.done.Requests++
	if err != nil {
		c.done.Failed++
		if len(c.done.Failures) < 10 {
			c.done.Failures[err.Error()]++
		}
	}
}

func cpuMicros() int64 {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return (usage.Utime.Nano() + usage.Stime.Nano()) / 1000
}
