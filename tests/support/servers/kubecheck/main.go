// Kubecheck reads manifests as Kubernetes's API server does: strictly, with its defaults, and by its own validation.
//
//	kubecheck FILE…
//
// Each document of each file is told on a line, with what is wrong with it; 1 if anything is.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/kubernetes/pkg/apis/batch"
	batchinstall "k8s.io/kubernetes/pkg/apis/batch/install"
	batchvalidation "k8s.io/kubernetes/pkg/apis/batch/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	coreinstall "k8s.io/kubernetes/pkg/apis/core/install"
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
)

func main() {
	scheme := runtime.NewScheme()
	coreinstall.Install(scheme)
	batchinstall.Install(scheme)
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDecoder()
	failed := false
	for _, path := range os.Args[1:] {
		data, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		documents := yaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(data)))
		for {
			text := make([]byte, len(data))
			size, err := documents.Read(text)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(2)
			}
			told, problems := check(decoder, text[:size])
			failed = failed || len(problems) > 0
			fmt.Printf("%s: %s\n", filepath.Base(path), told)
			for _, one := range problems {
				fmt.Printf("%s: %s: %v\n", filepath.Base(path), told, one)
			}
		}
	}
	if failed {
		os.Exit(1)
	}
}

func check(decoder runtime.Decoder, text []byte) (string, []error) {
	object, kind, err := decoder.Decode(text, nil, nil)
	if err != nil {
		return "unreadable", []error{err}
	}
	var found field.ErrorList
	switch one := object.(type) {
	case *batch.CronJob:
		one.Namespace = "default"
		found = batchvalidation.ValidateCronJobCreate(one, corevalidation.PodValidationOptions{})
	case *core.ConfigMap:
		one.Namespace = "default"
		found = corevalidation.ValidateConfigMap(one)
	case *core.ServiceAccount:
		one.Namespace = "default"
		found = corevalidation.ValidateServiceAccount(one)
	default:
		return kind.Kind, []error{errors.New("a kind that is not checked")}
	}
	problems := make([]error, len(found))
	for i, one := range found {
		problems[i] = one
	}
	return kind.Kind, problems
}
