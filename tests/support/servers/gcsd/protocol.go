package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"regexp"
	"strconv"
	"strings"
)

var contentRange = regexp.MustCompile(`^bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$`)

// chunk serves a part of a resumable upload: bytes that the session has already are dropped, and a question
// ("bytes */N") is answered here unless it ends a stream of exactly that length.
func (g *gate) chunk(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	if done, ok := g.finished[id]; ok {
		replay(w, done)
		return
	}
	held := g.sessions[id]
	if m := contentRange.FindStringSubmatch(r.Header.Get("Content-Range")); m != nil {
		start, _ := strconv.ParseInt(m[1], 10, 64)
		if m[1] == "" && m[3] != strconv.FormatInt(held, 10) {
			incomplete(w, held)
			return
		}
		if m[1] != "" && start > held {
			incomplete(w, held)
			return
		}
		if m[1] != "" {
			skip := min(held-start, int64(len(body)))
			body = body[skip:]
			held += int64(len(body))
			replaceBody(r, body)
		}
	}
	recorder := httptest.NewRecorder()
	g.library.ServeHTTP(recorder, r)
	if recorder.Code == http.StatusPermanentRedirect {
		g.sessions[id] = held
	} else {
		delete(g.sessions, id)
		g.finished[id] = recorder
	}
	replay(w, recorder)
}

func incomplete(w http.ResponseWriter, held int64) {
	if held > 0 {
		w.Header().Set("Range", fmt.Sprintf("bytes=0-%d", held-1))
	}
	w.WriteHeader(http.StatusPermanentRedirect)
}

// batch serves each part of a batch through the gate, so that conditions hold there as well.
func (g *gate) batch(w http.ResponseWriter, r *http.Request) {
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	in := multipart.NewReader(r.Body, params["boundary"])
	var b bytes.Buffer
	out := multipart.NewWriter(&b)
	for {
		part, err := in.NextRawPart()
		if err == io.EOF {
			break
		}
		var inner *http.Request
		if err == nil {
			inner, err = http.ReadRequest(bufio.NewReader(io.MultiReader(part, strings.NewReader("\r\n\r\n"))))
		}
		if err != nil {
			fail(w, http.StatusBadRequest, "invalid")
			return
		}
		inner.Host = r.Host
		recorder := httptest.NewRecorder()
		g.ServeHTTP(recorder, inner)
		header := textproto.MIMEHeader{"Content-Type": {"application/http"}}
		if id := part.Header.Get("Content-ID"); id != "" {
			header.Set("Content-ID", "<response-"+strings.TrimPrefix(id, "<"))
		}
		pw, _ := out.CreatePart(header)
		fmt.Fprintf(pw, "HTTP/1.1 %d %s\r\n", recorder.Code, http.StatusText(recorder.Code))
		recorder.Header().Set("Content-Length", strconv.Itoa(recorder.Body.Len()))
		recorder.Header().Write(pw)
		io.WriteString(pw, "\r\n")
		pw.Write(recorder.Body.Bytes())
	}
	out.Close()
	w.Header().Set("Content-Type", "multipart/mixed; boundary="+out.Boundary())
	w.Write(b.Bytes())
}

// metadata plays the GCE metadata server (GCE_METADATA_HOST and GCE_METADATA_IP name it), and tells whether
// the request was for it. Without one, each process of Beam looks for credentials for 20 s.
func metadata(w http.ResponseWriter, r *http.Request) bool {
	const universe = "/computeMetadata/v1/universe/universe"
	const accounts = "/computeMetadata/v1/instance/service-accounts/"
	answer, kind := "", "application/text"
	switch path := r.URL.Path; path {
	case "/":
		if r.Header.Get("Metadata-Flavor") != "Google" {
			return false
		}
		answer = "computeMetadata/\n"
	case "/computeMetadata/v1/project/project-id":
		answer = "test"
	case universe + "-domain", universe + "_domain":
		answer = "googleapis.com"
	case accounts + "default/":
		kind = "application/json"
		answer = `{"aliases":["default"],"email":"test@example.com","scopes":["https://www.googleapis.com/auth/cloud-platform"]}`
	case accounts + "default/token", accounts + "test@example.com/token":
		kind = "application/json"
		answer = `{"access_token":"fake","expires_in":3600,"token_type":"Bearer"}`
	default:
		return false
	}
	w.Header().Set("Metadata-Flavor", "Google")
	w.Header().Set("Content-Type", kind)
	io.WriteString(w, answer)
	return true
}
