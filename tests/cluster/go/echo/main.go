// echo is the server of most cluster tests: it says which pod answers, whom it sees as its client, and what arrived.
//
//	echo [-http 8080,8081] [-tcp 9000]   HTTP/1.1 and HTTP/2 without TLS: /healthz, gRPC's health check, /status/NNN,
//	                                     and a JSON description of the request for every other path; TCP: one line
//	                                     "POD CLIENT", then every byte comes back
//	     [-upstreams URL,URL]            asks these for the same path before it answers, each on a connection of its own and
//	                                     by the request's IP family; what they say is part of the answer
//	echo [-timeout 5s] [-family tcp6] get URL    prints the answer; fails unless it is 200
//	echo ok                              ends well: an exec probe
//	echo load URL HOST:PORT              steady load, see load.go
//
// Every request and connection is a line on standard output.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var (
	started   = time.Now()
	pod       = named("POD_NAME")
	node      = os.Getenv("NODE_NAME")
	namespace = os.Getenv("POD_NAMESPACE")
	upstreams []string
)

// named returns a variable of the environment, or the host name where the manifest did not set it.
func named(variable string) string {
	if value := os.Getenv(variable); value != "" {
		return value
	}
	name, _ := os.Hostname()
	return name
}

// answer is what a client learns about its request.
type answer struct {
	Pod       string              `json:"pod"`
	Namespace string              `json:"namespace,omitempty"`
	Node      string              `json:"node,omitempty"`
	Client    string              `json:"client"`
	Local     string              `json:"local"`
	Protocol  string              `json:"protocol"`
	Method    string              `json:"method"`
	Host      string              `json:"host"`
	Path      string              `json:"path"`
	Headers   map[string][]string `json:"headers"`
	Bytes     int64               `json:"bytes"`
	Upstreams []json.RawMessage   `json:"upstreams,omitempty"`
}

// family names the network of a connection's address for a dialler.
func family(local net.Addr) string {
	if address, ok := local.(*net.TCPAddr); ok && address.IP.To4() == nil {
		return "tcp6"
	}
	return "tcp4"
}

// client makes a connection for each request.
func client(network string, timeout time.Duration) *http.Client {
	dial := func(ctx context.Context, _, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	return &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
}

// ask is what an upstream says, or {"error": why it says nothing}.
func ask(url, network string) json.RawMessage {
	response, err := client(network, 4*time.Second).Get(url)
	var body []byte
	if err == nil {
		defer response.Body.Close()
		body, err = io.ReadAll(response.Body)
	}
	if err != nil {
		body, _ = json.Marshal(map[string]string{"error": err.Error()})
	}
	return body
}

func describe(w http.ResponseWriter, r *http.Request) {
	size, _ := io.Copy(io.Discard, r.Body)
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	fmt.Printf("http %s %s %s from %s bytes %d\n", r.Proto, r.Method, r.URL.Path, r.RemoteAddr, size)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Pod", pod)
	status := http.StatusOK
	if text, found := strings.CutPrefix(r.URL.Path, "/status/"); found {
		if wanted, err := strconv.Atoi(text); err == nil && wanted >= 200 && wanted < 600 {
			status = wanted
		}
	}
	var below []json.RawMessage
	for _, upstream := range upstreams {
		below = append(below, ask(upstream+r.URL.RequestURI(), family(local)))
	}
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(answer{pod, namespace, node, r.RemoteAddr, local.String(), r.Proto, r.Method, r.Host,
		r.URL.RequestURI(), r.Header, size, below})
}

// health is grpc.health.v1.Health/Check, whose answer is always SERVING: {status: 1} in a frame that is not compressed.
func health(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status")
	w.Write([]byte{0, 0, 0, 0, 2, 8, 1})
	w.Header().Set("Grpc-Status", "0")
}

func serveHTTP(port string) {
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("/grpc.health.v1.Health/Check", health)
	mux.HandleFunc("/", describe)
	server := http.Server{Addr: ":" + port, Handler: mux, Protocols: new(http.Protocols)}
	server.Protocols.SetHTTP1(true)
	server.Protocols.SetUnencryptedHTTP2(true)
	log.Fatal(server.ListenAndServe())
}

func serveTCP(port string) {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer connection.Close()
			fmt.Fprintf(connection, "%s %s\n", pod, connection.RemoteAddr())
			size, err := io.Copy(connection, connection)
			fmt.Printf("tcp from %s bytes %d error %v\n", connection.RemoteAddr(), size, err)
		}()
	}
}

func get(url, network string, timeout time.Duration) int {
	response, err := client(network, timeout).Get(url)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer response.Body.Close()
	io.Copy(os.Stdout, response.Body)
	if response.StatusCode != http.StatusOK {
		fmt.Fprintln(os.Stderr, response.Status)
		return 1
	}
	return 0
}

func main() {
	httpPorts := flag.String("http", "8080", "comma-separated ports for HTTP")
	tcpPorts := flag.String("tcp", "9000", "comma-separated ports for TCP")
	called := flag.String("upstreams", "", "comma-separated URLs without a path, asked at each request")
	timeout := flag.Duration("timeout", 5*time.Second, "the longest time that get takes")
	network := flag.String("family", "tcp", "tcp4 or tcp6: by which IP family get connects")
	flag.Parse()
	switch flag.Arg(0) {
	case "get":
		os.Exit(get(flag.Arg(1), *network, *timeout))
	case "ok":
		return
	case "load":
		load(flag.Arg(1), flag.Arg(2))
	}
	if *called != "" {
		upstreams = strings.Split(*called, ",")
	}
	for _, port := range strings.Split(*httpPorts, ",") {
		go serveHTTP(port)
	}
	for _, port := range strings.Split(*tcpPorts, ",") {
		go serveTCP(port)
	}
	fmt.Printf("echo: %s serves HTTP on %s and TCP on %s after %v\n", pod, *httpPorts, *tcpPorts, time.Since(started))
	select {}
}
