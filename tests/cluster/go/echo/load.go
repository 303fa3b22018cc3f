package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	requesters = 4 // each makes a request on a new connection, then waits
	lasting    = 4 // connections that stay, with a few bytes each way at every turn
	turn       = 50 * time.Millisecond
	patience   = 10 * time.Second
)

// tally is what the load has met so far; a line of it is printed every half second.
type tally struct {
	mutex    sync.Mutex
	Requests int            `json:"requests"`
	Failures map[string]int `json:"failures"` // of requests, by cause
	Turns    int            `json:"turns"`
	Ends     map[string]int `json:"ends"`    // of lasting connections, by cause
	Refused  map[string]int `json:"refused"` // lasting connections that could not be made, by cause
	Gap      int64          `json:"gap"`     // the longest time without a successful request, in milliseconds
	success  time.Time
}

// cause is an error without what differs from one to the next.
func cause(err error) string {
	var code syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &code):
		return code.Error()
	case errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	text := err.Error()
	return strings.TrimSpace(text[strings.LastIndex(text, ": ")+1:])
}

func (t *tally) add(change func()) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	change()
}

func (t *tally) request(asker *http.Client, url string) {
	response, err := asker.Get(url)
	if err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			err = errors.New(response.Status)
		}
	}
	t.add(func() {
		t.Requests++
		if err != nil {
			t.Failures[cause(err)]++
			return
		}
		now := time.Now()
		t.Gap = max(t.Gap, now.Sub(t.success).Milliseconds())
		t.success = now
	})
}

// last keeps one connection busy until it ends.
func (t *tally) last(address string) {
	connection, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		t.add(func() { t.Refused[cause(err)]++ })
		return
	}
	defer connection.Close()
	buffer := make([]byte, 512)
	// What is reset before it has carried anything was refused: a proxy accepts a connection before it decides.
	for count := t.Refused; ; count = t.Ends {
		connection.SetDeadline(time.Now().Add(patience))
		if _, err = connection.Write([]byte("again\n")); err == nil {
			_, err = connection.Read(buffer)
		}
		if err != nil {
			t.add(func() { count[cause(err)]++ })
			return
		}
		t.add(func() { t.Turns++ })
		time.Sleep(turn)
	}
}

// load asks url, each time on a new connection, and keeps connections to address, an echo server's TCP port, until it is
// killed. It says on standard output what it has met.
func load(url, address string) {
	t := &tally{Failures: map[string]int{}, Ends: map[string]int{}, Refused: map[string]int{}, success: time.Now()}
	for range requesters {
		go func() {
			for asker := client("tcp", patience); ; time.Sleep(turn) {
				t.request(asker, url)
			}
		}()
	}
	for range lasting {
		go func() {
			for ; ; time.Sleep(turn) {
				t.last(address)
			}
		}()
	}
	for ; ; time.Sleep(500 * time.Millisecond) {
		t.mutex.Lock()
		line, _ := json.Marshal(t)
		t.mutex.Unlock()
		if _, err := fmt.Println(string(line)); err != nil {
			os.Exit(1)
		}
	}
}
