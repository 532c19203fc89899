// Command gcsd is a Cloud Storage to test against: fake-gcs-server as a library, in memory, on a free port
// of the loopback, with what it lacks added in front of it. It prints its address and serves until its
// standard input ends, so that it never outlives a test that was killed.
//
// The library honours ifGenerationMatch on uploads of all three kinds (checked when a resumable one is
// finished, not when it is begun). Added here:
//
//   - ifGenerationMatch and ifGenerationNotMatch on reads, deletes, patches, copies, rewrites (with
//     ifSourceGenerationMatch) and composes: 412, or 304 for a read; 404 where the object is not there.
//     Changes run one at a time, their bodies read beforehand, so that a check and what it allows are one.
//   - Resumable sessions: asking how far one got must not finish it, a chunk that is sent again must not
//     be stored twice, and a finished session repeats its answer.
//   - Batches: the library drops parts without a Content-ID, and the Python client sends none.
//   - Pages of 1000 names where a listing asks for no fewer.
//   - What is not there is told in Cloud Storage's words: whether the object or its whole bucket is missing.
//   - Links in an object's metadata that lead back to the address the client used, through any proxy.
//   - The few calls of the GCE metadata server that google-auth makes.
//
// Still lacking: metageneration conditions, conditions inside signed or XML requests, checksums after the
// first chunk of a resumable upload, prefixes in pages (they do not count towards maxResults, and return
// on later pages), permissions, and bucket policies.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/fsouza/fake-gcs-server/fakestorage"
)

// placeholder stands where the library would put its own address.
const placeholder = "http://gcsd.invalid"

const pageNames = 1000

var (
	objectPath = regexp.MustCompile(`^(?:/download)?/storage/v1/b/([^/]+)/o/(.+?)(/compose)?$`)
	copyPath   = regexp.MustCompile(`^/storage/v1/b/([^/]+)/o/(.+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)$`)
	anyPath    = regexp.MustCompile(`^/(?:download/|upload/)?storage/v1/b/([^/]+)/o(?:/(.+?))?(?:/rewriteTo/.*)?$`)
	listPath   = regexp.MustCompile(`^/storage/v1/b/[^/]+/o/?$`)
)

// gate is all that stands in front of the library.
type gate struct {
	store   *fakestorage.Server
	library http.Handler
	changes sync.Mutex
	// Both are guarded by changes.
	sessions map[string]int64
	finished map[string]*httptest.ResponseRecorder
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case metadata(w, r):
		return
	}
	w = &missing{ResponseWriter: w, gate: g, path: r.URL.EscapedPath()}
	switch {
	case r.URL.Path == "/batch/storage/v1" && r.Method == http.MethodPost:
		g.batch(w, r)
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		g.read(w, r)
	default:
		g.change(w, r)
	}
}

// missing puts Cloud Storage's words in the place of the library's, which are the same for whatever is not there.
type missing struct {
	http.ResponseWriter
	gate *gate
	path string
	told bool
}

func (w *missing) WriteHeader(status int) {
	m := anyPath.FindStringSubmatch(w.path)
	if status != http.StatusNotFound || m == nil {
		w.ResponseWriter.WriteHeader(status)
		return
	}
	w.told = true
	w.Header().Del("Content-Length")
	bucket, _ := url.PathUnescape(m[1])
	name, _ := url.PathUnescape(m[2])
	message := "No such object: " + bucket + "/" + name
	if _, err := w.gate.store.Backend().GetBucket(bucket); err != nil {
		message = "The specified bucket does not exist."
	}
	answer(w.ResponseWriter, status, "notFound", message)
}

func (w *missing) Write(body []byte) (int, error) {
	if w.told {
		return len(body), nil
	}
	return w.ResponseWriter.Write(body)
}

// change checks and serves as one. The body comes first: a slow sender must not hold up the others, and one
// that dies must change nothing.
func (g *gate) change(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		fail(w, http.StatusBadRequest, "invalid")
		return
	}
	replaceBody(r, body)
	g.changes.Lock()
	defer g.changes.Unlock()
	if status := g.refusal(r); status != 0 {
		fail(w, status, "conditionNotMet")
	} else if id := r.URL.Query().Get("upload_id"); id != "" && r.Method == http.MethodPut {
		g.chunk(w, r, id, body)
	} else {
		g.library.ServeHTTP(w, r)
	}
}

func replaceBody(r *http.Request, body []byte) {
	r.ContentLength = int64(len(body))
	r.Body = http.NoBody
	if len(body) > 0 {
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
}

// read serves a listing, an object or its metadata. A condition that holds becomes the generation to read,
// so that an object which is replaced between check and read is not found instead of read.
func (g *gate) read(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	path := r.URL.EscapedPath()
	if listPath.MatchString(path) {
		if n, err := strconv.Atoi(query.Get("maxResults")); query.Get("maxResults") == "" || (err == nil && (n > pageNames || n == 0)) {
			query.Set("maxResults", strconv.Itoa(pageNames))
			r.URL.RawQuery = query.Encode()
		}
	}
	if !objectPath.MatchString(path) {
		g.library.ServeHTTP(w, r)
		return
	}
	if status := g.refusal(r); status != 0 {
		fail(w, status, "conditionNotMet")
		return
	}
	if match := query.Get("ifGenerationMatch"); match != "" && query.Get("generation") == "" {
		query.Set("generation", match)
		r.URL.RawQuery = query.Encode()
	}
	if query.Get("alt") == "media" || strings.HasPrefix(path, "/download/") || r.Method == http.MethodHead {
		g.library.ServeHTTP(w, r)
		return
	}
	recorder := httptest.NewRecorder()
	g.library.ServeHTTP(recorder, r)
	text := bytes.ReplaceAll(recorder.Body.Bytes(), []byte(placeholder), []byte("http://"+r.Host))
	recorder.Body = bytes.NewBuffer(text)
	replay(w, recorder)
}

// refusal returns the status to refuse a request with, or 0. What is not there is for the library to miss,
// except as the destination of a copy.
func (g *gate) refusal(r *http.Request) int {
	query := r.URL.Query()
	path := r.URL.EscapedPath()
	match, notMatch := query.Get("ifGenerationMatch"), query.Get("ifGenerationNotMatch")
	if m := copyPath.FindStringSubmatch(path); m != nil {
		source := g.generation(m[1], m[2])
		sourceMatch, sourceNotMatch := query.Get("ifSourceGenerationMatch"), query.Get("ifSourceGenerationNotMatch")
		if source == "0" || (holds(source, sourceMatch, sourceNotMatch) && holds(g.generation(m[3], m[4]), match, notMatch)) {
			return 0
		}
		return http.StatusPreconditionFailed
	}
	m := objectPath.FindStringSubmatch(path)
	if m == nil {
		return 0
	}
	current := g.generation(m[1], m[2])
	if (current == "0" && m[3] == "") || holds(current, match, notMatch) {
		return 0
	}
	if (r.Method == http.MethodGet || r.Method == http.MethodHead) && holds(current, match, "") {
		return http.StatusNotModified
	}
	return http.StatusPreconditionFailed
}

func holds(current, match, notMatch string) bool {
	return (match == "" || match == current) && (notMatch == "" || notMatch != current)
}

// generation returns the live generation of an object, "0" where there is none.
func (g *gate) generation(bucket, name string) string {
	bucket, _ = url.PathUnescape(bucket)
	name, _ = url.PathUnescape(name)
	object, err := g.store.GetObjectStreaming(bucket, name)
	if err != nil {
		return "0"
	}
	defer object.Close()
	return strconv.FormatInt(object.Generation, 10)
}

func fail(w http.ResponseWriter, status int, reason string) {
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	answer(w, status, reason, http.StatusText(status))
}

func answer(w http.ResponseWriter, status int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{
		"code": status, "message": message,
		"errors": []map[string]string{{"domain": "global", "reason": reason, "message": message}},
	}})
}

// replay sends a recorded answer, as often as wanted.
func replay(w http.ResponseWriter, recorder *httptest.ResponseRecorder) {
	for name, values := range recorder.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(recorder.Body.Len()))
	w.WriteHeader(recorder.Code)
	w.Write(recorder.Body.Bytes())
}

func main() {
	addr := flag.String("addr", "127.0.0.1:0", "listen address")
	flag.Parse()
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatal(err)
	}
	// Without a port the library takes every port of this host for its own, and so any proxy's as well.
	store, err := fakestorage.NewServerWithOptions(fakestorage.Options{NoListener: true, Scheme: "http",
		PublicHost: "127.0.0.1", ExternalURL: placeholder, Writer: io.Discard})
	if err != nil {
		log.Fatal(err)
	}
	front := &gate{store: store, library: store.HTTPHandler(), sessions: map[string]int64{},
		finished: map[string]*httptest.ResponseRecorder{}}
	fmt.Printf("http://%s\n", listener.Addr())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	log.Fatal(http.Serve(listener, front))
}
