package main

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ask is what a prompt wants of the upstream: `bench: chunks=64 gap_us=20000 hold=1`. The prompt passes through every
// gateway, headers do not.
type ask struct {
	chunks  int
	gap     time.Duration
	hold    bool
	stream  bool
	usage   bool
	present bool
}

const (
	chunkForm = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,` +
		`"model":"gpt-4o-mini","system_fingerprint":"fp_bench","choices":[{"index":0,"delta":%s,` +
		`"logprobs":null,"finish_reason":%s}]}` + "\n\n"
	usageForm = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1760000000,` +
		`"model":"gpt-4o-mini","system_fingerprint":"fp_bench","choices":[],` +
		`"usage":{"prompt_tokens":12,"completion_tokens":%d,"total_tokens":%d}}` + "\n\n"
	plainForm = `{"id":"chatcmpl-bench","object":"chat.completion","created":1760000000,"model":"gpt-4o-mini",` +
		`"system_fingerprint":"fp_bench","choices":[{"index":0,"message":{"role":"assistant","content":"%s",` +
		`"refusal":null},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":12,"completion_tokens":8,"total_tokens":20}}`
	streamHead = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n" +
		"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)

func readAsk(body []byte) ask {
	compact := bytes.ReplaceAll(body, []byte(" "), nil)
	found := ask{
		stream: bytes.Contains(compact, []byte(`"stream":true`)),
		usage:  bytes.Contains(compact, []byte(`"include_usage":true`)),
		chunks: 1,
	}
	at := bytes.Index(body, []byte("bench:"))
	if at < 0 {
		return found
	}
	found.present = true
	words, _, _ := strings.Cut(string(body[at+len("bench:"):]), `"`)
	for _, word := range strings.Fields(words) {
		name, value, _ := strings.Cut(word, "=")
		number, err := strconv.Atoi(value)
		if err != nil {
			continue
		}
		switch name {
		case "chunks":
			found.chunks = number
		case "gap_us":
			found.gap = time.Duration(number) * time.Microsecond
		case "hold":
			found.hold = number == 1
		}
	}
	return found
}

// mark is the text of a token: when it was sent, so that the reader can tell how old it is.
func mark() string {
	return fmt.Sprintf("@%016d", time.Now().UnixMicro())
}

// framed appends an event as one chunk of the transfer coding, as servers write them.
func framed(to []byte, event string) []byte {
	to = strconv.AppendInt(to, int64(len(event)), 16)
	to = append(to, "\r\n"...)
	to = append(to, event...)
	return append(to, "\r\n"...)
}

func contentEvent() string {
	return fmt.Sprintf(chunkForm, `{"content":"`+mark()+`"}`, "null")
}

func roleEvent() string {
	return fmt.Sprintf(chunkForm, `{"role":"assistant","content":"","refusal":null}`, "null")
}

func appendEnd(to []byte, wanted ask) []byte {
	to = framed(to, fmt.Sprintf(chunkForm, "{}", `"stop"`))
	if wanted.usage {
		to = framed(to, fmt.Sprintf(usageForm, wanted.chunks, 12+wanted.chunks))
	}
	to = framed(to, "data: [DONE]\n\n")
	return append(to, "0\r\n\r\n"...)
}

func response(contentType string, body string) []byte {
	return []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s",
		contentType, len(body), body))
}
