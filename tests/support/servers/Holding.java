import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.sink.v2.DiscardingSink;

/** Submits Flink jobs that hold two slots each and do nothing: they wait for a socket that says nothing. */
public class Holding {
  public static void main(String[] args) throws Exception {
    int restPort = Integer.parseInt(args[0]);
    int socketPort = Integer.parseInt(args[1]);
    for (int i = 2; i < args.length; i++) {
      var cluster = StreamExecutionEnvironment.createRemoteEnvironment("127.0.0.1", restPort, 2);
      cluster.socketTextStream("127.0.0.1", socketPort).rebalance().sinkTo(new DiscardingSink<>());
      System.out.println(cluster.executeAsync(args[i]).getJobID());
    }
    System.exit(0);
  }
}
